"""Which variant a component's folder holds, told by the names of its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.models import load_model
from dipgo_deploy.models.sources.weight_files import only_variant
from tests.models.families import tiny


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], None),
        (["model.safetensors"], None),
        (["model.fp16.safetensors"], "fp16"),
        (["model.safetensors", "model.fp16.safetensors"], None),
        (["diffusion_pytorch_model.fp16.safetensors"], "fp16"),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], None),
        (["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"], "fp16"),
        (["model.non-ema.safetensors", "model.bf16.safetensors"], "bf16"),
        (["adapter.fp16.safetensors", "model.fp16.bin"], None),
    ],
)
def test_variants(names: list[str], expected: str | None, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert only_variant(tmp_path) == expected


def test_a_forgotten_variant_in_shards_is_named_and_naming_it_works(tmp_path: Path) -> None:
    half = tiny("sd").as_dtype("float16")
    half.module.save_pretrained(tmp_path, variant="fp16", max_shard_size="40KB")
    with pytest.raises(InputError, match=r"found variants fp16: use variant fp16$"):
        load_model(tmp_path)
    assert load_model(tmp_path, variant="fp16", dtype="float16").digest == half.digest
    whole = load_model(tmp_path, variant="fp16")
    assert whole.dtype == "float32" and whole.digest == half.as_dtype("float32").digest
    with pytest.raises(InputError, match=r"found variants fp16: use variant fp16$"):
        load_model(tmp_path, variant="bf16")
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.fp16.json"
    other = index.rename(tmp_path / "diffusion_pytorch_model.fp16.safetensors.index.json")
    for variant, end in (("fp16", ""), (None, ", and use variant fp16")):
        with pytest.raises(InputError, match=rf"that diffusers does not read: rename it to {index.name}{end}$"):
            load_model(tmp_path, variant=variant)
    other.rename(index)
    assert load_model(tmp_path, variant="fp16", dtype="float16").digest == half.digest


@pytest.mark.parametrize(
    ("entry", "method"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "torchao", "quant_type": "int8wo"}, "torchao"),
        ({"quant_method": "quanto"}, "quanto"),
        ({"quant_method": "modelopt", "quant_type": "FP8"}, "modelopt"),
        ({"method": "svdquant", "weight": {"dtype": "int4"}}, "svdquant"),
        ({"quant_method": "gguf"}, "gguf"),
        ("unknown", "an unnamed method"),
    ],
)
def test_quantised_folders_are_refused_by_the_name_of_the_method(entry, method: str, tmp_path: Path) -> None:
    tiny("sd").module.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": entry}))
    for meta in (False, True):
        with pytest.raises(InputError, match=f"quantised by {method}: give the model with its unquantised weights"):
            load_model(tmp_path, meta=meta)


def test_scaled_weights_of_a_folder_are_refused_without_a_word_in_its_config(tmp_path: Path) -> None:
    tiny("sd").module.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(path), "conv_in.scale_weight": torch.ones(1)}, path)
    with pytest.raises(InputError, match="quantised by scaled float8, told by conv_in.scale_weight"):
        load_model(tmp_path)
