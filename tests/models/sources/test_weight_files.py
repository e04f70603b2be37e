"""Which variant a component's folder holds, told by the names of its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from dipgo_deploy.models.sources.weight_files import only_variant


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
