"""The digits, their classifier and the shipped models: fixed split, promised sizes, plain diffusers folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel, UNet2DConditionModel

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.models.class_embedder import ClassEmbedder
from dipgo_deploy.models.digits import CLASSES, SHIPPED, accuracy, frechet_distance, load_classifier, load_split

REFERENCE = SHIPPED.parent
FOLDERS = ("digits-unet", "digits-dit")


def test_split_is_whole_and_every_class_is_in_both_parts() -> None:
    train, test, whole = (load_split(name) for name in ("train", "test", "all"))
    assert len(train.labels) == 1437 and len(test.labels) == 360
    assert torch.equal(torch.cat([test.images, train.images]), whole.images)
    assert set(train.labels.tolist()) == set(test.labels.tolist()) == set(range(CLASSES))
    assert whole.images.shape == (1797, 1, 16, 16)
    assert whole.images.min() == -1 and whole.images.max() <= 1


def test_unknown_split_is_refused() -> None:
    with pytest.raises(UsageError, match="'validation'"):
        load_split("validation")


def test_frechet_distance_is_zero_on_itself_and_the_squared_shift_on_a_moved_copy() -> None:
    features = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(features, features + 2.0) == pytest.approx(12, abs=1e-4)
    assert frechet_distance(features, features * 2) == pytest.approx(
        float(features.double().T.cov().trace() + features.double().mean(0).square().sum()), rel=1e-6
    )


def test_classifier_recognises_the_test_split() -> None:
    data = load_split("test")
    assert accuracy(load_classifier(), data.images, data.labels) >= 0.97


@pytest.mark.parametrize(
    ("part", "folder", "name"),
    [(UNet2DConditionModel, "digits-unet", "unet"), (DiTTransformer2DModel, "digits-dit", "transformer")],
)
def test_model_loads_with_plain_diffusers(part: type, folder: str, name: str) -> None:
    model = part.from_pretrained(REFERENCE / folder, subfolder=name)
    assert 1_000_000 <= sum(p.numel() for p in model.parameters()) <= 1_500_000
    assert model.dtype is torch.float32
    index = json.loads((REFERENCE / folder / "model_index.json").read_text())
    assert index[name] == ["diffusers", part.__name__] and index["scheduler"] == [
        "diffusers",
        "DDIMScheduler",
    ]


def test_folders_are_small_and_hold_no_pickles() -> None:
    files = [p for folder in FOLDERS for p in (REFERENCE / folder).rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 12_000_000
    assert {p.suffix for p in files} == {".json", ".safetensors", ".md", ".png"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_schedule_keeps_every_sampler_linear(folder: str) -> None:
    config = DDIMScheduler.from_pretrained(REFERENCE / folder, subfolder="scheduler").config
    assert config.prediction_type == "epsilon" and "linear" in config.beta_schedule
    assert not config.clip_sample and not config.thresholding


def test_class_embedder_round_trips(tmp_path: Path) -> None:
    embedder = ClassEmbedder(num_classes=3, tokens=2, dim=5)
    embedder.save_pretrained(tmp_path)
    loaded = ClassEmbedder.from_pretrained(tmp_path)
    labels = torch.tensor([0, loaded.null_label])
    assert loaded(labels).shape == (2, 2, 5)
    assert torch.equal(loaded(labels), embedder(labels))
