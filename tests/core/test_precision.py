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
    always_fp32=("a",),
    fallback=(FallbackNodes("mid_block", ("n1", "n2"), "reaches 1e6"),),
    fp32_tensors=("w",),
    local=0.001,
    free=0.002,
)


def test_half_precision_files_are_named_as_diffusers_names_them():
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


def test_a_record_of_version_1_is_refused_in_one_line_that_says_what_to_do() -> None:
    """Version 1 called the fallback nodes by other names. The search for them has to run again anyway."""
    path = Path(__file__).parent.parent / "data" / "formats-1.0" / "precision.json"
    with pytest.raises(
        InputError,
        match=r"has format version 1\.0, this program reads 2\.0: build the engines in half precision again",
    ) as refusal:
        load_precision(path)
    assert "\n" not in str(refusal.value)


def test_a_record_is_written_in_version_2(tmp_path: Path) -> None:
    save_precision(tmp_path / "precision.json", RECORD)
    assert json.loads((tmp_path / "precision.json").read_text())["format_version"] == "2.0"
