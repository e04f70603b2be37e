from __future__ import annotations

import json
from pathlib import Path

import pytest

from dipgo_deploy.bundle import load_bundle
from dipgo_deploy.core.errors import InputError


def flip_byte(path: Path, at: int = -200) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)


def test_a_bundle_opens_with_its_model(bundle_folder: Path, digits_unet) -> None:
    bundle = load_bundle(bundle_folder, whole=True)
    assert bundle.model.digest == digits_unet.digest == bundle.manifest.contract.model_digest
    assert bundle.program.contract == bundle.schedule.contract


@pytest.mark.parametrize(
    "name", ["schedule.json", "program.json", "blocks.json", "unet/subnet_00.onnx", "unet/master.onnx"]
)
def test_a_flipped_byte_is_found_at_load(bundle_copy: Path, name: str) -> None:
    flip_byte(bundle_copy / name)
    with pytest.raises(InputError, match=r"differs from its recorded sha256"):
        load_bundle(bundle_copy)


def test_a_flipped_byte_of_large_weights_is_found_at_load(bundle_copy: Path, monkeypatch) -> None:
    monkeypatch.setattr("dipgo_deploy.bundle.files._SMALL_FILE", 1_000_000)
    load_bundle(bundle_copy)
    flip_byte(bundle_copy / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(InputError, match=r"safetensors differs from its recorded sha256"):
        load_bundle(bundle_copy)
    load_bundle(bundle_copy, trust_weights=True)
    with pytest.raises(InputError, match=r"safetensors differs from its recorded sha256"):
        load_bundle(bundle_copy, whole=True, trust_weights=True)


def test_missing_and_truncated_files(bundle_copy: Path) -> None:
    weights = bundle_copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(InputError, match="bytes, recorded are"):
        load_bundle(bundle_copy)
    weights.unlink()
    with pytest.raises(InputError, match="safetensors is missing"):
        load_bundle(bundle_copy)
    (bundle_copy / "bundle.json").unlink()
    with pytest.raises(InputError, match="has no bundle.json"):
        load_bundle(bundle_copy)
    with pytest.raises(InputError, match="is not a folder: give a bundle that export wrote"):
        load_bundle(bundle_copy / "nowhere")


def test_a_bundle_that_is_a_broken_link_is_named(tmp_path: Path) -> None:
    (tmp_path / "bundle").symlink_to("gone")
    with pytest.raises(InputError, match="bundle is a link that leads to .*gone, which does not exist"):
        load_bundle(tmp_path / "bundle")


def edit_manifest(folder: Path, **changes: object) -> None:
    path = folder / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_manifests_that_lie(bundle_copy: Path) -> None:
    manifest = json.loads((bundle_copy / "bundle.json").read_text())
    edit_manifest(bundle_copy, format_version="2.0")
    with pytest.raises(InputError, match="format version 2.0"):
        load_bundle(bundle_copy)
    edit_manifest(bundle_copy, format_version="1.7", graphs={"subnet_00": "../../elsewhere.onnx"})
    with pytest.raises(InputError, match="is not a path inside .*: the files were tampered with"):
        load_bundle(bundle_copy)
    first, *others = manifest["graphs"].items()
    edit_manifest(bundle_copy, graphs={"../" + first[0]: first[1], **dict(others)})
    with pytest.raises(InputError, match=r"and its program differ in graph '../subnet_00'"):
        load_bundle(bundle_copy)
    edit_manifest(
        bundle_copy, graphs=manifest["graphs"], files=[f for f in manifest["files"] if "onnx" not in f["path"]]
    )
    with pytest.raises(InputError, match="has no digest of unet/master"):
        load_bundle(bundle_copy)
    contract = {**manifest["contract"], "guidance": "none"}
    edit_manifest(bundle_copy, files=manifest["files"], contract=contract)
    with pytest.raises(InputError, match=r"schedule.json was made for guidance concat, expected none"):
        load_bundle(bundle_copy)
