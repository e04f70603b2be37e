"""What a pipeline runs around its denoiser: text encoders before it, a VAE's decoder after it.

Only their time is of interest here, so a component is a call without arguments, on inputs of the right shapes. They run
in PyTorch, in float32, from the folders that `model_index.json` names; nothing is downloaded, no remote code is run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from dipgo_deploy.core.errors import DipgoError, InputError, MissingError
from dipgo_deploy.core.files import path_inside, read_json

__all__ = ["PipelineRun", "component_names", "load_component"]

_TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
_VAE = "vae"
_TOKENS = 77
_MOST_TOKENS = 4096
"""Tokenizers without a limit of their own record an astronomic one."""

_DTYPE = {"diffusers": "torch_dtype", "transformers": "dtype"}
"""How each library calls the dtype to load in."""

Run = Callable[[], object]


@dataclass(frozen=True)
class PipelineRun:
    """Sizes of one run of a pipeline.

    ``prompts`` are encoded at once: one, and under guidance the negative one too; ``latents`` is (B, C, H, W);
    ``device`` is ``cpu`` or ``cuda``.
    """

    prompts: int
    latents: tuple[int, int, int, int]
    device: str = "cpu"


def component_names(folder: Path) -> tuple[str, ...]:
    """The text encoders and the VAE of a pipeline folder, in the order in which they run."""
    index = _index(folder)
    return tuple(name for name in (*_TEXT_ENCODERS, _VAE) if all(index.get(name) or [None]))


def load_component(folder: Path, name: str, run: PipelineRun) -> Run:
    """Load a component of `component_names` and return one pass of it, which waits until the device is done.

    Raises MissingError where transformers is needed and absent, InputError where the folder cannot be loaded, holds
    something unknown or does not fit ``run``.
    """
    library, class_name = _index(folder)[name]
    kind = _component_class(name, library, class_name)
    home = path_inside(folder, name)
    try:
        dtype = {_DTYPE[library]: torch.float32}
        module = kind.from_pretrained(home, local_files_only=True, use_safetensors=True, **dtype)
        module = module.eval().requires_grad_(False).to(run.device)
        one_pass = _decoding(module, run) if name == _VAE else _encoding(module, _tokens(folder, name, module), run)
        one_pass()
    except DipgoError:
        raise
    except Exception as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{home} cannot be run as {class_name} ({line}): restore its files") from None
    return one_pass


def _index(folder: Path) -> Mapping[str, Any]:
    return read_json(folder / "model_index.json")


def _component_class(name: str, library: str, class_name: str) -> Any:
    """The class that the index names, if it is a model of diffusers or transformers with the component's method."""
    wanted, base, method = (
        ("diffusers", "ModelMixin", "decode") if name == _VAE else ("transformers", "PreTrainedModel", "forward")
    )
    if library != wanted:
        raise InputError(f"{name} is of {library}, one of {wanted} is wanted: put a {wanted} model there")
    try:
        package = import_module(library)
    except ImportError:
        raise MissingError(f"{library} is not installed: pip install {library}") from None
    kind = getattr(package, class_name, None)
    if not (isinstance(kind, type) and issubclass(kind, getattr(package, base)) and hasattr(kind, method)):
        raise InputError(f"{class_name} of {library} is no {name} that this program knows: use another one")
    return kind


def _tokens(folder: Path, name: str, module: Any) -> int:
    """Length of the token sequence that the pipeline's tokenizer gives, as far as the model takes it."""
    config = path_inside(folder, name.replace("text_encoder", "tokenizer")) / "tokenizer_config.json"
    asked = read_json(config).get("model_max_length") if config.is_file() else None
    if not (isinstance(asked, int) and 1 <= asked <= _MOST_TOKENS):
        asked = _TOKENS
    return min(asked, int(getattr(module.config, "max_position_embeddings", None) or _MOST_TOKENS))


def _encoding(module: Any, tokens: int, run: PipelineRun) -> Run:
    words = module.get_input_embeddings().num_embeddings
    ids = torch.arange(run.prompts * tokens, device=run.device).reshape(run.prompts, tokens) % words
    return _waiting(lambda: module(input_ids=ids), run.device)


def _decoding(module: Any, run: PipelineRun) -> Run:
    channels = module.config.get("latent_channels")
    if channels != run.latents[1]:
        raise InputError(f"the vae decodes {channels} channels, the latents have {run.latents[1]}: use the model's own")
    latents = torch.randn(run.latents, generator=torch.Generator().manual_seed(0)).to(run.device)
    return _waiting(lambda: module.decode(latents), run.device)


def _waiting(act: Run, device: str) -> Run:
    def run() -> None:
        with torch.inference_mode():
            act()
        if device == "cuda":
            torch.cuda.synchronize()

    return run
