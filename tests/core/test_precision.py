from __future__ import annotations

import json
from pathlib import Path

import pytest

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.files import load_precision, save_precision
from dipgo_deploy.core.precision import FallbackNodes, PrecisionRecord, half_precision_name

RECORD = PrecisionRecord(
    dtype="float16",
    source="s",
    tolerance=0.02,
    images=2,
    fixed=("a",),
    islands=(FallbackNodes("mid_block", ("n1", "n2"), "reaches 1e6"),),
    wide=("w",),
    local=0.001,
    free=0.002,
)


def test_variants_are_named_as_diffusers_names_them():
    name = half_precision_name("diffusion_pytorch_model.safetensors", "float16")
    assert name == "diffusion_pytorch_model.fp16.safetensors"
    assert half_precision_name("subnet_00.onnx", "bfloat16") == "subnet_00.bf16.onnx"


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "precision.fp16.json"
    save_precision(path, RECORD)
    assert load_precision(path) == RECORD


@pytest.mark.parametrize(("field", "value"), [("dtype", "float8"), ("local", None), ("more", 1)])
def test_a_damaged_record_is_refused(tmp_path: Path, field: str, value: object) -> None:
    path = tmp_path / "precision.fp16.json"
    save_precision(path, RECORD)
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(InputError, match=field):
        load_precision(path)
