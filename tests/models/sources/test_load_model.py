"""Models from every kind of source."""

from __future__ import annotations

import json
import os
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dipgo_deploy.core.errors import InputError, MissingError, UsageError
from dipgo_deploy.models import LoadedModel, load_model
from dipgo_deploy.models.sources.hub import is_hub_name
from tests.models.families import tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bare denoiser folder."""
    tiny("sd").module.save_pretrained(tmp_path / "unet")
    return tmp_path / "unet"


def test_shards_give_the_model_that_was_saved(tmp_path: Path) -> None:
    whole = tiny("sd")
    whole.module.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*-of-*.safetensors"))) > 2
    assert load_model(tmp_path).digest == whole.digest


def test_a_variant_is_loaded_where_it_is_named(tmp_path: Path) -> None:
    half = tiny("sd").as_dtype("float16")
    half.module.save_pretrained(tmp_path, variant="fp16")
    assert load_model(tmp_path, variant="fp16", dtype="float16").digest == half.digest
    with pytest.raises(
        InputError, match=r"no diffusion_pytorch_model.safetensors, found variants fp16: use variant fp16"
    ):
        load_model(tmp_path)
    sharded = tmp_path / "sharded"
    half.module.save_pretrained(sharded, variant="fp16", max_shard_size="40KB")
    assert load_model(sharded, variant="fp16", dtype="float16").digest == half.digest


def test_a_variant_of_which_there_are_none(folder: Path) -> None:
    with pytest.raises(InputError, match=r"no diffusion_pytorch_model.fp16.safetensors, found .*: leave variant out"):
        load_model(folder, variant="fp16")


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(InputError, match="the name of the model is empty: give a diffusers folder or one of"):
        load_model("")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_model_is_loaded_in_the_requested_dtype(folder: Path, dtype: str) -> None:
    loaded = load_model(folder, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.module.parameters()} == {getattr(torch, dtype)}
    assert loaded.digest == tiny("sd").as_dtype(dtype).digest


def test_shapes_without_weights_are_read_from_the_config(folder: Path) -> None:
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    shapes = load_model(folder, meta=True)
    assert not shapes.has_weights and shapes.weight_bytes == tiny("sd").weight_bytes


def test_a_checkpoint_of_one_file_is_loaded_on_a_config(folder: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copy(folder / "diffusion_pytorch_model.safetensors", tmp_path / "model.safetensors")
    loaded = load_model(checkpoint, config=str(folder))
    assert loaded.digest == tiny("sd").digest and loaded.component == "unet"
    with pytest.raises(InputError, match=r"model.safetensors cannot be loaded as UNet2DConditionModel"):
        load_model(checkpoint)  # its keys are taken for those of Stable Diffusion 1


def test_shapes_without_weights_of_a_checkpoint_of_one_file(folder: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copy(folder / "diffusion_pytorch_model.safetensors", tmp_path / "model.safetensors")
    shapes = load_model(checkpoint, config=str(folder), meta=True)
    assert not shapes.has_weights and shapes.weight_bytes == tiny("sd").weight_bytes


def test_a_python_model_has_no_shapes_without_weights() -> None:
    with pytest.raises(UsageError, match="meta does not apply to package.module:attribute"):
        load_model("package.module:attribute", meta=True)


def test_a_checkpoint_that_is_damaged_or_of_a_class_without_such_files(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"12345678" * 4)
    with pytest.raises(InputError, match=r"broken.safetensors is not a readable safetensors checkpoint"):
        load_model(broken)
    with pytest.raises(UsageError, match="diffusers cannot load a DiTTransformer2DModel from a single file"):
        load_model(broken, config="dit-xl-2-256")
    with pytest.raises(InputError, match=r"absent.safetensors is not a .safetensors file"):
        load_model(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("ending", [".ckpt", ".bin", ".pt", ".pth", ".pkl"])
def test_pickles_are_never_opened(ending: str, tmp_path: Path) -> None:
    trap = tmp_path / f"model{ending}"
    trap.write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    with pytest.raises(InputError, match="is a pickle, which can run code when opened.*python -c"):
        load_model(trap)


def test_a_folder_of_pickles_is_refused_with_the_line_that_converts_it(folder: Path) -> None:
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    tiny("sd").module.save_pretrained(folder, safe_serialization=False)
    with pytest.raises(InputError, match=r"diffusion_pytorch_model.bin is a pickle") as refusal:
        load_model(folder)
    line = str(refusal.value).split('python -c "')[1].rstrip('"')
    exec(line, {})
    assert load_model(folder).digest == tiny("sd").digest


def test_shards_stay_in_their_folder(folder: Path, tmp_path: Path) -> None:
    weights = folder / "diffusion_pytorch_model.safetensors"
    names = list(load_file(weights))
    shutil.move(weights, tmp_path / "outside.safetensors")
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    for shard, match in (
        ("../outside.safetensors", "names the shard '../outside.safetensors', which is not a plain file name"),
        (str(tmp_path / "outside.safetensors"), "which is not a plain file name"),
        ("..", "which is not a plain file name"),
        ("missing.safetensors", "names the shard missing.safetensors, which is not a safetensors file"),
        ("model.bin", "names the shard model.bin"),
    ):
        index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, shard)}))
        with pytest.raises(InputError, match=match):
            load_model(folder)
    index.write_text('{"weight_map": []}')
    with pytest.raises(InputError, match="does not map weights to shards"):
        load_model(folder)


def test_hub_names() -> None:
    assert is_hub_name("stabilityai/stable-diffusion-2-1") and is_hub_name("a/b.c_d")
    assert not any(map(is_hub_name, ("digits", "a/b/c", "../b", "/a/b", "a/", "./a", "package.module:attribute")))


def test_an_unavailable_hub_name_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        MissingError, match=r"no model nobody/nothing at v2 in the hub's cache, and HF_HUB_OFFLINE is set"
    ):
        load_model("nobody/nothing", revision="v2")


def test_a_hub_name_is_loaded_from_the_cache_at_a_revision(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, digits_unet: LoadedModel
) -> None:
    assert digits_unet.folder is not None
    cached(digits_unet.folder, tmp_path, monkeypatch)
    loaded = load_model("owner/digits", revision="v2")
    assert loaded.digest == digits_unet.digest
    assert not load_model("owner/digits", revision="v2", meta=True).has_weights
    with pytest.raises(MissingError, match="no model owner/digits at v3"):
        load_model("owner/digits", revision="v3")


def test_shards_that_are_links_are_loaded_from_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, digits_unet: LoadedModel
) -> None:
    pipeline = tmp_path / "pipeline"
    assert digits_unet.folder is not None
    shutil.copytree(digits_unet.folder, pipeline)
    (pipeline / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    size = digits_unet.weight_bytes * 6 // 10
    digits_unet.module.save_pretrained(pipeline / "unet", max_shard_size=size)
    assert len(list((pipeline / "unet").glob("*-of-*.safetensors"))) == 2
    cached(pipeline, tmp_path, monkeypatch)
    assert load_model("owner/digits", revision="v2").digest == digits_unet.digest


def test_shapes_without_weights_of_a_hub_name_are_fetched_as_configs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, digits_unet: LoadedModel
) -> None:
    assert digits_unet.folder is not None
    requests: list[tuple[str, dict[str, Any]]] = []

    def download(name: str, **options: Any) -> str:
        requests.append((name, options))
        for source in (path for path in digits_unet.folder.rglob("*") if path.is_file()):
            relative = source.relative_to(digits_unet.folder)
            if any(fnmatch(str(relative), pattern) for pattern in options["allow_patterns"]):
                place = tmp_path / "snapshot" / relative
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, place)
        return str(tmp_path / "snapshot")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("diffusers.DiffusionPipeline.download", None)
    shapes = load_model("owner/digits", revision="v2", meta=True)
    assert not shapes.has_weights and shapes.weight_bytes == digits_unet.weight_bytes
    assert shapes.class_embedder is not None and shapes.class_embedder.embedding.weight.is_meta
    assert (shapes.num_classes, shapes.tokens) == (digits_unet.num_classes, digits_unet.tokens)
    assert [name for name, _ in requests] == ["owner/digits"] and requests[0][1]["revision"] == "v2"
    assert not requests[0][1]["local_files_only"]
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json"}


def test_shapes_without_weights_of_a_folder_open_no_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, digits_unet: LoadedModel
) -> None:
    assert digits_unet.folder is not None
    shutil.copytree(digits_unet.folder, tmp_path / "copy")
    for weights in (tmp_path / "copy").rglob("*.safetensors"):
        weights.write_bytes(b"these are no weights")
    shapes = load_model(tmp_path / "copy", meta=True)
    assert not shapes.has_weights and shapes.scheduler_config == digits_unet.scheduler_config


def cached(pipeline: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's cache with ``pipeline`` as owner/digits at v2, as its client lays it out, links to blobs included."""
    commit, repo = "c" * 40, cache / "models--owner--digits"
    snapshot = repo / "snapshots" / commit
    (repo / "refs").mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "refs" / "v2").write_text(commit)
    for source in (path for path in pipeline.rglob("*") if path.is_file()):
        place = snapshot / source.relative_to(pipeline)
        place.parent.mkdir(parents=True, exist_ok=True)
        blob = repo / "blobs" / f"{len(list((repo / 'blobs').iterdir())):064x}"
        shutil.copy(source, blob)
        place.symlink_to(os.path.relpath(blob, place.parent))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.HF_HUB_CACHE", str(cache), raising=False)


@pytest.mark.parametrize(
    ("source", "option"),
    [("digits-unet", "revision"), ("digits-unet", "config"), ("a.safetensors", "variant"), ("x:y", "variant")],
)
def test_options_of_another_kind_of_source_are_refused(source: str, option: str) -> None:
    with pytest.raises(UsageError, match=f"{option} v1 does not apply to {source}: leave it out"):
        load_model(source, **{option: "v1"})
