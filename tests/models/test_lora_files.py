"""LoRA files as the command line names them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.models.lora_files import LoraFile, lora_from_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", LoraFile(Path("a.safetensors"))),
        ("a.safetensors:0.5", LoraFile(Path("a.safetensors"), 0.5)),
        ("a:b/c.safetensors:-1", LoraFile(Path("a:b/c.safetensors"), -1.0)),
        ("a:b/c.safetensors", LoraFile(Path("a:b/c.safetensors"))),
    ],
)
def test_files_and_scales_are_read(text: str, expected: LoraFile):
    assert lora_from_text(text) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a.safetensors:much", "the scale 'much' is not a number: give FILE or FILE:SCALE"),
        ("a.safetensors:inf", "the scale 'inf' is not a number"),
        ("a.bin", "a.bin is not a .safetensors file: convert it"),
        (".", "is a folder: give the .safetensors file in it"),
        ("a.pt:0.5", "is not a .safetensors file"),
    ],
)
def test_other_formats_and_odd_scales_are_refused(text: str, says: str):
    with pytest.raises(UsageError, match=says):
        lora_from_text(text)
