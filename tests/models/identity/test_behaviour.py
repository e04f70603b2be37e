"""The identity of a live module: whatever changes its forward changes its digest, and nothing else does."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
import torch.nn.functional as F
import transformers
from diffusers.models import attention, attention_processor, resnet
from torch import nn

from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.models import PRESETS, load_model, model_from_module
from dipgo_deploy.models.identity import behaviour_of
from tests.models.families import FAMILIES, tiny
from tests.models.pipelines import TEXT


def unet() -> diffusers.UNet2DConditionModel:
    return tiny("sd").module


@pytest.mark.parametrize("name", FAMILIES)
def test_a_module_as_its_class_makes_it_has_no_behaviour(name: str, tmp_path: Path) -> None:
    """Its digest is the one of earlier versions, in memory and from a folder, in every dtype."""
    transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT, max_position_embeddings=7))  # adds to nn.Module
    model = tiny(name)
    assert not model.behaviour and model.digest == model.weights_digest
    model.module.save_pretrained(tmp_path)
    for dtype in ("float32", "float16"):
        assert not behaviour_of(load_model(tmp_path, dtype=dtype).module), dtype
    assert not model.as_dtype("bfloat16").behaviour


def subclassed() -> nn.Module:
    class UNet2DConditionModel(diffusers.UNet2DConditionModel):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    config = {name: value for name, value in unet().config.items() if not name.startswith("_")}
    return UNet2DConditionModel(**config).eval()


def wrapped(module: nn.Module) -> None:
    forward = module.forward
    module.forward = lambda *args, **kwargs: forward(*args, **kwargs)


def merged(module: nn.Module) -> None:
    """What patches for token merging do: a class made for each block, with its methods in a closure."""

    def make(base: type) -> type:
        class MergedBlock(base):
            _parent = base

            def forward(self, hidden_states, *args, **kwargs):
                return super().forward(hidden_states, *args, **kwargs)

        return MergedBlock

    for part in module.modules():
        if isinstance(part, attention.BasicTransformerBlock):
            part.__class__ = make(part.__class__)


def adapted(module: nn.Module) -> None:
    from peft import LoraConfig

    torch.manual_seed(0)
    module.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "FreeU": lambda m: m.enable_freeu(0.9, 0.2, 1.2, 1.4),
    "fused projections": lambda m: m.fuse_qkv_projections(),
    "a bound forward": lambda m: setattr(m, "forward", types.MethodType(lambda self, *a, **k: a[0], m)),
    "a wrapped forward": wrapped,
    "a wrapped forward of a block": lambda m: wrapped(m.mid_block),
    "a hook": lambda m: m.mid_block.register_forward_hook(lambda module, args, output: output * 2),
    "a hook before": lambda m: m.register_forward_pre_hook(lambda module, args: None),
    "processors": lambda m: m.set_attn_processor(attention_processor.AttnProcessor()),
    "slices": lambda m: m.set_attention_slice("auto"),
    "token merging": merged,
    "parametrizations": lambda m: nn.utils.parametrizations.weight_norm(m.conv_in),
    "a LoRA": adapted,
    "an attribute": lambda m: setattr(m.up_blocks[0].resnets[0], "output_scale_factor", 2.0),
    "another activation": lambda m: setattr(m, "conv_act", nn.Identity()),
}
"""What people do to a U-Net. Many leave the state dict alone."""


def test_a_forward_without_names_gets_the_usual_inputs(monkeypatch) -> None:
    model = tiny("sd")
    names = list(model.example_inputs(1))
    wrapped(model.module)
    assert list(model.example_inputs(1)) == names
    forward = diffusers.UNet2DConditionModel.forward
    patched = lambda self, *args, **kwargs: forward(self, *args, **kwargs)  # noqa: E731 - an anonymous patch
    monkeypatch.setattr(diffusers.UNet2DConditionModel, "forward", patched)
    assert list(model.example_inputs(1)) == names


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_a_module_changes_its_digest_the_same_way_every_time(name: str) -> None:
    changed = [tiny("sd"), tiny("sd")]
    plain = changed[0].digest
    for model in changed:
        CHANGES[name](model.module)
    assert changed[0].behaviour and changed[0].behaviour.summary
    assert changed[0].digest == changed[1].digest != plain


def test_changes_that_are_taken_back_or_without_effect_leave_the_digest() -> None:
    model = tiny("sd")
    plain, module = model.digest, model.module
    module.enable_freeu(0.9, 0.2, 1.2, 1.4)
    module.disable_freeu()
    module.register_forward_hook(lambda *_: None).remove()
    module.enable_gradient_checkpointing()
    assert model.digest == plain
    assert model_from_module(torch.compile(module), latent_shape=(4, 8, 8), text_tokens=7).digest == plain


def test_weights_that_are_written_to_are_hashed_again() -> None:
    model = tiny("sd")
    plain = model.digest
    bias = model.module.conv_in.bias.detach().clone()
    with torch.no_grad():
        model.module.conv_in.bias.add_(1.0)
    assert model.digest != plain
    model.module.conv_in.bias.data = bias
    assert model.digest == plain


PATCHES: dict[str, tuple[object, str, Callable[[Callable], object]]] = {
    "a forward": (attention.BasicTransformerBlock, "forward", lambda old: lambda self, x, *a, **k: old(self, x)),
    "a decorated forward": (
        attention.BasicTransformerBlock, "forward", lambda old: functools.wraps(old)(lambda *a, **k: old(*a, **k)),
    ),
    "a forward of another class": (
        attention.BasicTransformerBlock, "forward", lambda old: attention.JointTransformerBlock.forward,
    ),
    "a partial": (resnet.ResnetBlock2D, "forward", lambda old: functools.partialmethod(lambda s, x, *a, k: x, k=1)),
    "a processor": (attention_processor.AttnProcessor2_0, "__call__", lambda old: lambda self, a, x, **k: x),
    "a layer of PyTorch": (nn.Linear, "forward", lambda old: lambda self, x: old(self, x) * 2),
    "a function of PyTorch": (F, "scaled_dot_product_attention", lambda old: lambda q, k, v, **_: v),
}  # fmt: skip
"""Patches for the whole process: where, and what takes the place of the old value."""


@pytest.mark.parametrize("name", PATCHES)
def test_a_patch_of_the_whole_process_changes_the_digest(name: str, monkeypatch) -> None:
    model = tiny("sd")
    plain = model.digest
    owner, attribute, make = PATCHES[name]
    old = getattr(owner, attribute)
    monkeypatch.setattr(owner, attribute, make(old))
    assert model.digest != plain and attribute in model.behaviour.summary
    monkeypatch.undo()
    assert model.digest == plain


def test_a_subclass_of_the_same_name_and_a_forward_of_a_preset_count() -> None:
    module = subclassed()
    assert behaviour_of(module).summary == "class"
    model = tiny("sd")
    preset = PRESETS["UNet2DConditionModel"]
    other = replace(preset, forward=lambda module, **inputs: -preset.forward(module, **inputs))
    changed = model_from_module(model.module, preset=other, latent_shape=(4, 8, 8), text_tokens=7)
    assert changed.digest != model.digest and changed.behaviour.summary == "preset.forward"


def test_buffers_that_no_file_holds_count() -> None:
    model = tiny("wan")
    plain = model.digest
    model.module.rope.freqs_cos.mul_(2)
    assert model.digest != plain and model.behaviour.summary == "rope.freqs_cos"


OWN = """
import os, torch
from torch import nn
SCALE = {scale}
def helper(x):
    return x * SCALE
class Own(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 2, 1)
        for _ in range(int(os.environ["PYTHONHASHSEED"])):
            self.register_forward_hook(print).remove()
        self.register_forward_hook(lambda module, args, output: output)
        self.names = {{"one", "two", "three"}}
    def forward(self, sample, timestep):
        return helper(self.conv(sample))
"""

DIGEST = """
from dipgo_deploy.models import Preset, model_from_module
preset = Preset({}, lambda *a: {}, lambda module, **inputs: module(**inputs), lambda config: (2, 8, 8))
print(model_from_module(Own(), preset=preset).digest)
"""


def own_digest(folder: Path, seed: int, scale: float, *, imported: bool) -> str:
    """The digest of a user's module in a process of its own, as a script or imported from a file."""
    own = OWN.format(scale=scale)
    (folder / f"own_{seed}.py").write_text(own)
    program = (f"from own_{seed} import Own\n" if imported else own) + DIGEST
    environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_code_of_a_users_class_counts_and_is_the_same_in_every_process(tmp_path: Path) -> None:
    first = own_digest(tmp_path, 1, 2.0, imported=False)
    assert own_digest(tmp_path, 2, 2.0, imported=True) == first
    assert own_digest(tmp_path, 3, 3.0, imported=True) != first


def test_a_copy_that_would_run_the_original_is_refused() -> None:
    model = tiny("sd")
    wrapped(model.module)
    with pytest.raises(UsageError, match="cannot be copied, for forward refers to the module itself: convert"):
        model.as_dtype("float16")
    hooked = tiny("sd")
    CHANGES["a hook"](hooked.module)
    assert hooked.as_dtype("float16").behaviour.digest == hooked.behaviour.digest


def offloaded(module: nn.Module) -> None:
    from accelerate import cpu_offload

    cpu_offload(module, execution_device=torch.device("cpu"))


def cached(module: nn.Module) -> None:
    from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache

    apply_first_block_cache(module, FirstBlockCacheConfig())


LIVE = {
    "compiled": (lambda m: setattr(m, "mid_block", torch.compile(m.mid_block)), "sd", "compiled by torch.* in mid"),
    "offloaded": (offloaded, "sd", r"offloading hooks of accelerate .* remove them first, with pipe.remove_all_hooks"),
    "cached": (cached, "flux", "a hook of diffusers .* before caching, casting or offloading"),
    "quantised": (
        lambda m: setattr(m, "mid_block", torch.ao.quantization.quantize_dynamic(m.mid_block, {nn.Linear})), "sd",
        "quantised weights .* in mid_block.*: give the unquantised model",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LIVE)
def test_live_modules_that_no_trace_can_show_are_refused(name: str) -> None:
    change, family, says = LIVE[name]
    module = tiny(family).module
    change(module)
    with pytest.raises(InputError, match=says):
        model_from_module(module, latent_shape=FAMILIES[family][1])
