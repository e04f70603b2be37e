"""The files of a bundle: links as the hub's cache makes them, edits that matter and edits that do not."""

from __future__ import annotations

import os
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from dipgo_deploy.bundle import load_bundle
from dipgo_deploy.bundle.files import is_prose
from dipgo_deploy.bundle.write import copy_bundle
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.runtime import GenerateOptions, generate
from tests.bundle.test_load import flip_byte

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def hub_cache(source: Path, root: Path) -> Path:
    """The snapshot folder of a hub cache: every file is a relative link into ``blobs``."""
    for path in (path for path in source.rglob("*") if path.is_file()):
        blob = root / "blobs" / sha256(path.read_bytes()).hexdigest()
        link = root / "snapshots" / "main" / path.relative_to(source)
        for folder in (blob.parent, link.parent):
            folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return root / "snapshots" / "main"


def hard_links(source: Path, root: Path) -> Path:
    return Path(shutil.copytree(source, root / "bundle", copy_function=os.link))


def folders_elsewhere(source: Path, root: Path) -> Path:
    """A link to a bundle whose denoiser's folder is a link, behind a folder that is a link."""
    shutil.copytree(source, root / "disk" / "bundle")
    (root / "disk" / "bundle" / "unet").rename(root / "unet-of-another-disk")
    (root / "disk" / "bundle" / "unet").symlink_to("../../unet-of-another-disk")
    (root / "middle").symlink_to("disk")
    (root / "link").symlink_to("middle/bundle")
    return root / "link"


@pytest.mark.parametrize("arranged", [hub_cache, hard_links, folders_elsewhere])
def test_links_change_nothing(arranged, bundle_folder: Path, tmp_path: Path) -> None:
    wanted = generate(load_bundle(bundle_folder), GenerateOptions(classes=(3,)))
    bundle = load_bundle(arranged(bundle_folder, tmp_path), whole=True)
    np.testing.assert_array_equal(generate(bundle, GenerateOptions(classes=(3,))), wanted)
    copy_bundle(bundle, tmp_path / "copy")
    assert load_bundle(tmp_path / "copy", whole=True).contract == bundle.contract
    assert not any(path.is_symlink() for path in (tmp_path / "copy").rglob("*"))


def test_a_link_to_a_file_of_other_content_is_refused(bundle_copy: Path) -> None:
    (bundle_copy / WEIGHTS).unlink()
    (bundle_copy / WEIGHTS).symlink_to("/etc/passwd")
    with pytest.raises(InputError, match="safetensors has .* bytes, recorded are"):
        load_bundle(bundle_copy)
    (bundle_copy / WEIGHTS).unlink()
    (bundle_copy / WEIGHTS).symlink_to("/dev/null")
    with pytest.raises(InputError, match="safetensors is not a regular file"):
        load_bundle(bundle_copy)
    (bundle_copy / WEIGHTS).unlink()
    (bundle_copy / WEIGHTS).symlink_to("nowhere")
    with pytest.raises(InputError, match="is a link that leads to .*nowhere, which does not exist"):
        load_bundle(bundle_copy)


def test_prose_may_be_edited_and_deleted(bundle_copy: Path, tmp_path: Path) -> None:
    (bundle_copy / "README.md").write_text("my own words")
    copy_bundle(load_bundle(bundle_copy, whole=True), tmp_path / "copy")
    assert (tmp_path / "copy" / "README.md").read_text() == "my own words"
    (bundle_copy / "README.md").unlink()
    (bundle_copy / "README.md").symlink_to("/etc/passwd")
    copy_bundle(load_bundle(bundle_copy, whole=True), tmp_path / "second")
    assert not (tmp_path / "second" / "README.md").exists()
    assert is_prose("LICENSE") and is_prose("vae/README.md") and not is_prose("vae/merges.txt")


def test_a_component_that_differs_is_named_with_the_ways_to_use_another(sd_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sd_bundle, tmp_path / "bundle"))
    flip_byte(folder / "vae" / "diffusion_pytorch_model.safetensors")
    ways = r"vae=\.\.\.\), or export a pipeline that holds it with schedule .*bundle/schedule.json"
    with pytest.raises(InputError, match=f"differs from its recorded sha256 .*: restore the vae, or .*{ways}"):
        load_bundle(folder)
    load_bundle(folder, replaced=["vae"])
    shutil.rmtree(folder / "vae")
    with pytest.raises(InputError, match="is missing: restore the vae, or pass another one"):
        load_bundle(folder)
    load_bundle(folder, replaced=["vae"])
    (folder / "tokenizer" / "added_tokens.json").write_text("{}")
    with pytest.raises(InputError, match=r"added_tokens.json was added to tokenizer after the export: remove it, or"):
        load_bundle(folder, replaced=["vae"])
    flip_byte(folder / "scheduler" / "scheduler_config.json")
    with pytest.raises(InputError, match="restore the scheduler, or search with another sampler"):
        load_bundle(folder, replaced=["vae", "tokenizer"])
