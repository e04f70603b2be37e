"""load_pipeline: pipelines that load and pipelines that are refused, saving, from_pipe, and other schedulers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

import dipgo_deploy
from dipgo_deploy.bundle import load_bundle
from dipgo_deploy.core.errors import InputError, MissingError
from dipgo_deploy.pipeline import DeployedDenoiser, RefusedCall, call_arguments, load_pipeline
from dipgo_deploy.verify import VerifyOptions, verify_bundle
from tests.bundle.test_files import hub_cache
from tests.pipeline.pipelines import SIDE, drawn, make_bundle

CALL = {"prompt": "a cat", "guidance_scale": 4.0, "output_type": "latent"}

IMAGE = {"output_type": "np"}


@pytest.fixture
def pipeline(sd_bundle: Path):
    return load_pipeline(sd_bundle)


def call(pipeline) -> dict:
    return {**call_arguments(pipeline, pipeline.unet.bundle.contract), **CALL}


def test_it_is_the_usual_pipeline_with_the_scheduler_of_the_contract(pipeline, capsys):
    assert type(pipeline) is diffusers.StableDiffusionPipeline and isinstance(pipeline.unet, DeployedDenoiser)
    assert call(pipeline) == {**CALL, "num_inference_steps": 6, "height": SIDE, "width": SIDE}
    assert pipeline.scheduler.config.steps_offset == 1 and drawn(pipeline, call(pipeline)).shape == (1, 4, 8, 8)


def test_a_pipeline_of_which_only_a_variant_was_fetched(sd_pipeline: Path, pipeline, tmp_path: Path):
    fetched = shutil.copytree(sd_pipeline, tmp_path / "pipeline")
    (fetched / "text_encoder" / "model.safetensors").rename(fetched / "text_encoder" / "model.fp16.safetensors")
    weights = fetched / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    loaded = load_pipeline(make_bundle("sd", fetched, tmp_path / "bundle", sampler="ddim"))
    assert np.array_equal(drawn(loaded, call(loaded) | IMAGE), drawn(pipeline, call(pipeline) | IMAGE))


def test_loading_says_nothing(sd_bundle: Path, capfd, caplog):
    load_pipeline(sd_bundle)
    assert capfd.readouterr() == ("", "") and not [r for r in caplog.records if r.name.startswith("diffusers")]


def test_the_package_offers_it_by_name(sd_bundle: Path):
    assert dipgo_deploy.load_pipeline is load_pipeline and dipgo_deploy.DeployedDenoiser is DeployedDenoiser


def test_saved_and_loaded_again_it_draws_the_same(pipeline, tmp_path: Path):
    first = drawn(pipeline, call(pipeline))
    pipeline.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["unet"] == ["dipgo_deploy.pipeline.denoiser", "DeployedDenoiser"]
    again = load_pipeline(tmp_path / "saved", threads=1)
    assert np.array_equal(drawn(again, call(again)), first)
    by_diffusers = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "saved", safety_checker=None)
    assert np.array_equal(drawn(by_diffusers, call(pipeline)), first)
    again.save_pretrained(tmp_path / "twice")
    third = load_pipeline(tmp_path / "twice")
    assert np.array_equal(drawn(third, call(third)), first)


def test_a_saved_denoiser_is_a_bundle(pipeline, tmp_path: Path):
    pipeline.unet.save_pretrained(tmp_path / "unet")
    report = verify_bundle(load_bundle(tmp_path / "unet", whole=True), VerifyOptions(images=1))
    assert report.passed, report.failure
    assert json.loads((tmp_path / "unet" / "config.json").read_text())["_class_name"] == "UNet2DConditionModel"
    with pytest.raises(InputError, match="exists (and is no|but is not a) bundle"):
        pipeline.unet.save_pretrained(tmp_path)


def test_a_saved_denoiser_has_all_documents_of_its_bundle_and_no_other_components(sd_bundle: Path, tmp_path: Path):
    folder = shutil.copytree(sd_bundle, tmp_path / "bundle")
    (folder / "precision.fp16.json").write_text("{}")
    changed(folder, tmp_path / "again")
    DeployedDenoiser.from_bundle(tmp_path / "again").save_pretrained(tmp_path / "unet")
    saved = {
        path.relative_to(tmp_path / "unet").as_posix() for path in (tmp_path / "unet").rglob("*") if path.is_file()
    }
    own = {r.path for r in load_bundle(tmp_path / "again").manifest.files}
    kept = {path for path in own if "/" not in path or path.startswith("unet/")}
    assert saved == kept | {"bundle.json", "config.json"} and "precision.fp16.json" in saved


def test_a_denoiser_that_cannot_be_saved_leaves_the_older_bundle(sd_bundle: Path, tmp_path: Path, monkeypatch):
    denoiser, older = DeployedDenoiser.from_bundle(sd_bundle), tmp_path / "unet"
    denoiser.save_pretrained(older)
    before = {path: path.read_bytes() for path in older.rglob("*") if path.is_file()}
    copyfile = shutil.copyfile

    def full_disk(source, target):
        if Path(source).suffix == ".safetensors":
            raise OSError(28, "No space left on device")
        return copyfile(source, target)

    monkeypatch.setattr(shutil, "copyfile", full_disk)
    with pytest.raises(InputError, match=r"unet cannot be written \(No space left on device\): choose another place"):
        denoiser.save_pretrained(older)
    assert {path: path.read_bytes() for path in older.rglob("*") if path.is_file()} == before
    assert [*tmp_path.iterdir()] == [older]


def test_engines_that_are_recorded_but_gone_are_left_out_of_a_saved_denoiser(sd_bundle: Path, tmp_path: Path):
    folder = shutil.copytree(sd_bundle, tmp_path / "bundle")
    engine = folder / "unet" / "engines" / "rtx-1-sm89" / "subnet_00.engine"
    engine.parent.mkdir(parents=True)
    engine.write_bytes(b"engine")
    changed(folder, tmp_path / "again")
    (tmp_path / "again" / engine.relative_to(folder)).unlink()
    DeployedDenoiser.from_bundle(tmp_path / "again").save_pretrained(tmp_path / "unet")
    assert load_bundle(tmp_path / "unet").manifest.files and not list((tmp_path / "unet").rglob("*.engine"))


def test_a_pipeline_made_from_it_shares_the_denoiser(pipeline):
    other = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipeline)
    assert other.unet is pipeline.unet
    image = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    steps = {**CALL, "num_inference_steps": 6, "image": image, "strength": 0.5}
    assert np.array_equal(drawn(other, steps), drawn(other, steps))


def test_another_sampler_of_the_same_timesteps_is_refused(pipeline):
    first, own = drawn(pipeline, call(pipeline)), pipeline.scheduler
    pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(own.config)
    with pytest.raises(RefusedCall, match="made for DDIMScheduler with .*, the pipeline has a EulerDiscreteScheduler"):
        drawn(pipeline, call(pipeline))
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(own.config, beta_end=0.03)
    with pytest.raises(RefusedCall, match="a DDIMScheduler of another class or config"):
        drawn(pipeline, call(pipeline))
    pipeline.scheduler = own
    assert np.array_equal(drawn(pipeline, call(pipeline)), first)


def changed(bundle: Path, folder: Path, **entries: object) -> Path:
    """A copy of a bundle whose index says something else; its digest is made to fit."""
    from dataclasses import replace

    from dipgo_deploy.core.digests import records_of
    from dipgo_deploy.core.files import load_manifest, save_manifest

    shutil.copytree(bundle, folder)
    index = json.loads((folder / "model_index.json").read_text()) | entries
    (folder / "model_index.json").write_text(json.dumps(index))
    manifest = load_manifest(folder / "bundle.json")
    save_manifest(folder / "bundle.json", replace(manifest, files=records_of(folder)))
    return folder


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"_class_name": "DiffusionPipeline"}, "holds a denoiser without a pipeline: set DeployedDenoiser.from_bundle"),
        ({"_class_name": ["pipeline", "Mine"]}, "names code of its own as _class_name"),
        (
            {"text_encoder": ["os", "system"]},
            r"names \['os', 'system'\] as text_encoder: a part must be of",
        ),
        ({"text_encoder": ["text_encoder", "Mine"]}, "a part must be of diffusers or transformers"),
        ({"unet": [None, None], "image_encoder": {"a": 1}}, "as image_encoder: a part must be of"),
        ({"_class_name": "NoSuchPipeline"}, "cannot be loaded as NoSuchPipeline"),
    ],
)
def test_a_folder_that_is_no_known_pipeline_is_refused(sd_bundle: Path, tmp_path: Path, entries, message):
    with pytest.raises(InputError, match=message):
        load_pipeline(changed(sd_bundle, tmp_path / "bundle", **entries))


def test_a_part_that_lives_beside_its_pipeline_in_diffusers_is_known(sd_bundle: Path, tmp_path: Path):
    """The safety checker of every published Stable Diffusion 1."""
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    folder = changed(sd_bundle, tmp_path / "bundle", safety_checker=checker)
    assert load_pipeline(folder, safety_checker=None).safety_checker is None
    with pytest.raises(InputError, match="has no safety_checker, which its pipeline needs: pass safety_checker="):
        load_pipeline(folder)


def test_missing_parts_are_named(sd_bundle: Path, sd_pipeline: Path, tmp_path: Path):
    folder = changed(sd_bundle, tmp_path / "bundle")
    shutil.rmtree(folder / "vae")
    changed_again = changed(folder, tmp_path / "again")
    with pytest.raises(InputError, match="has no vae, which its pipeline needs: pass vae="):
        load_pipeline(changed_again)
    vae = diffusers.AutoencoderKL.from_pretrained(sd_pipeline / "vae")
    assert load_pipeline(changed_again, vae=vae).vae is vae


def test_a_plain_pipeline_folder_is_refused(sd_pipeline: Path):
    with pytest.raises(InputError, match="has no bundle.json and no deployed denoiser"):
        load_pipeline(sd_pipeline)


def test_without_transformers_it_says_what_is_missing(sd_bundle: Path, monkeypatch):
    from dipgo_deploy.pipeline import load as module

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match="text_encoder needs transformers, .*: pip install transformers"):
        load_pipeline(sd_bundle)


def test_arguments_of_a_contract_without_guidance(pipeline, sd_bundle: Path):
    from dataclasses import replace

    contract = replace(load_bundle(sd_bundle).contract, guidance="none")
    assert call_arguments(pipeline, contract)["guidance_scale"] == 1.0


def test_a_pipeline_folder_of_links_becomes_a_bundle_of_files(sd_pipeline: Path, sd_bundle: Path, tmp_path: Path):
    """The text encoder is shared with another pipeline, and every file of the bundle is a link of the hub's cache."""
    linked = shutil.copytree(sd_pipeline, tmp_path / "linked" / "pipeline")
    (linked / "text_encoder").rename(tmp_path / "shared")
    (linked / "text_encoder").symlink_to("../../shared")
    weights = linked / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(tmp_path / "weights-on-another-disk")
    weights.symlink_to(tmp_path / "weights-on-another-disk")
    folder = make_bundle("sd", linked, tmp_path / "bundle", sampler="ddim")
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    loaded, plain = load_pipeline(hub_cache(folder, tmp_path / "hub")), load_pipeline(sd_bundle)
    assert np.array_equal(drawn(loaded, call(loaded) | IMAGE), drawn(plain, call(plain) | IMAGE))
    (linked / "text_encoder").unlink()
    (linked / "text_encoder").symlink_to("../../gone")
    with pytest.raises(InputError, match=r"text_encoder is a link that leads to .*gone, which does not exist: restore"):
        make_bundle("sd", linked, tmp_path / "again", sampler="ddim")


def test_a_passed_component_replaces_one_that_was_swapped(sd_bundle: Path, sd_pipeline: Path, tmp_path: Path):
    folder = shutil.copytree(sd_bundle, tmp_path / "bundle")
    vae = diffusers.AutoencoderKL.from_pretrained(sd_pipeline / "vae")
    with torch.no_grad():
        vae.post_quant_conv.weight.mul_(2)
    vae.save_pretrained(folder / "vae")
    with pytest.raises(
        InputError, match=r"restore the vae, or pass another one as load_pipeline\(folder, vae=\.\.\.\)"
    ):
        load_pipeline(folder)
    assert load_pipeline(folder, vae=vae).vae is vae
