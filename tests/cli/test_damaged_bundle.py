"""Bundles that are damaged, or forged so that their digests fit: refused in one line, and never verified."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from dipgo_deploy.bundle import load_bundle
from dipgo_deploy.cli.main import run
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.files import load_manifest
from dipgo_deploy.runtime import open_session
from tests.cli.refusal import edit, flip, refused, seal, truncate

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
DOCUMENTS = ("schedule.json", "program.json", "blocks.json", "model_index.json", "unet/config.json")
RUNNERS = ("generate", "verify", "bench")


def reading(command: str, bundle: Path) -> list[object]:
    """A command line that would run the bundle."""
    options: dict[str, list[object]] = {
        "generate": ["--class", 1, "--count", 1, "--out", bundle.parent / "grid.png"],
        "verify": ["--images", 1],
        "bench": ["--images", 1, "--out", bundle.parent / "bench.json"],
    }
    return [command, bundle, *options[command]]


@pytest.mark.parametrize("command", RUNNERS)
def test_every_command_that_runs_a_bundle_checks_it(command, bundle_copy, capsys):
    edit(bundle_copy / "bundle.json", lambda manifest: manifest["graphs"].clear())
    refused(reading(command, bundle_copy), "and its program differ in graph", capsys)


@pytest.mark.parametrize("command", ["generate"])
class TestDamage:
    """All commands load a bundle by the same function, so one of them stands for all."""

    def test_missing(self, command, tmp_path, capsys):
        refused(reading(command, tmp_path / "nothing"), "is not a folder", capsys)

    def test_a_file(self, command, tmp_path, capsys):
        (tmp_path / "bundle").write_text("{}")
        refused(reading(command, tmp_path / "bundle"), "is not a folder", capsys)

    def test_truncated_manifest(self, command, bundle_copy, capsys):
        truncate(bundle_copy / "bundle.json")
        refused(reading(command, bundle_copy), "bundle.json is not valid JSON", capsys)

    def test_newer_version(self, command, bundle_copy, capsys):
        edit(bundle_copy / "bundle.json", lambda manifest: manifest.update(format_version="2.0"))
        refused(reading(command, bundle_copy), "format version 2.0, this program reads 1.1: update", capsys)

    @pytest.mark.parametrize("name", [*DOCUMENTS, WEIGHTS])
    def test_truncated(self, command, name, bundle_copy, capsys):
        truncate(bundle_copy / name)
        refused(reading(command, bundle_copy), f"{name} has", capsys)
        seal(bundle_copy)
        words = "not valid JSON" if name in DOCUMENTS[:3] else "restore"
        refused(reading(command, bundle_copy), words, capsys)

    def test_weights_whose_header_lies(self, command, bundle_copy, capsys):
        weights = bundle_copy / WEIGHTS
        weights.write_bytes((2**40).to_bytes(8, "little") + weights.read_bytes()[8:])
        seal(bundle_copy)
        refused(reading(command, bundle_copy), "restore", capsys)

    @pytest.mark.parametrize("name", ["unet/subnet_00.onnx", "unet/master.onnx"])
    @pytest.mark.parametrize("at", [0, 1000, -1])
    def test_a_flipped_byte_of_a_graph(self, command, name, at, bundle_copy, capsys):
        flip(bundle_copy / name, at)
        refused(reading(command, bundle_copy), "differs from its recorded sha256", capsys)

    def test_a_graph_that_is_none(self, command, bundle_copy, capsys):
        for path in (bundle_copy / "unet").glob("*.onnx"):
            flip(path, 0)
        seal(bundle_copy)
        refused(reading(command, bundle_copy), "is not a readable ONNX graph", capsys)

    def test_a_schedule_for_another_model(self, command, bundle_copy, capsys):
        edit(bundle_copy / "schedule.json", lambda schedule: schedule["contract"].update(model_digest="0" * 64))
        seal(bundle_copy)
        refused(reading(command, bundle_copy), "was made for model_digest 000000000000", capsys)

    def test_a_schedule_that_reads_before_it_wrote(self, command, bundle_copy, capsys):
        edit(bundle_copy / "schedule.json", lambda schedule: schedule["compute"].update(mid_block="000010"))
        seal(bundle_copy)
        refused(reading(command, bundle_copy), "step 0 reuses mid_block", capsys)


def test_a_guidance_scale_without_guidance(bundle_folder, monkeypatch, capsys):
    bundle = load_bundle(bundle_folder)
    plain = replace(bundle.manifest.contract, guidance="none")
    other = replace(
        bundle, manifest=replace(bundle.manifest, contract=plain), program=replace(bundle.program, contract=plain)
    )
    monkeypatch.setattr("dipgo_deploy.bundle.load_bundle", lambda *_, **__: other)
    refused(
        ["generate", bundle_folder, "--guidance-scale", 3],
        "--guidance-scale is 3, but the program was made without guidance",
        capsys,
        2,
    )


def test_verify_finds_forged_weights(bundle_copy, capsys):
    flip(bundle_copy / WEIGHTS, -2_000_000)
    refused(reading("verify", bundle_copy), "differs from its recorded sha256", capsys)
    seal(bundle_copy)
    refused(reading("verify", bundle_copy), "its contract is for", capsys)


def test_verify_finds_a_forged_graph(bundle_copy, capsys):
    path = bundle_copy / "unet" / "subnet_00.onnx"
    model = onnx.load(path, load_external_data=False)
    next(node for node in model.graph.node if node.op_type == "Sigmoid").op_type = "Tanh"
    path.write_bytes(model.SerializeToString())
    seal(bundle_copy)
    refused(reading("verify", bundle_copy), "onnxruntime subnets = torch", capsys, 4)


def image_of(folder: Path) -> np.ndarray:
    bundle = load_bundle(folder)
    noise = np.random.default_rng(3).standard_normal((1, 1, 16, 16), dtype=np.float32)
    return open_session(bundle, 1, guidance_scale=2.0).run(noise, bundle.model.conditioning([3], "concat"))


def test_verify_passes_no_forged_graph_that_draws_other_images(bundle_folder, bundle_copy, capsys):
    draw, wanted = random.Random(11), image_of(bundle_folder)
    paths = sorted((bundle_copy / "unet").glob("*.onnx"))
    for _ in range(12):
        path = draw.choice(paths)
        intact, at = path.read_bytes(), draw.randrange(path.stat().st_size)
        flip(path, at, 1 << draw.randrange(8))
        seal(bundle_copy)
        code = run([str(word) for word in reading("verify", bundle_copy)])
        lines = [line for line in capsys.readouterr().err.splitlines() if not line.endswith(" …")]
        assert (code, len(lines)) in ((0, 0), (3, 1), (4, 1)), (path.name, at, lines)
        assert code or np.abs(image_of(bundle_copy) - wanted).max() < 1e-3
        path.write_bytes(intact)


def test_one_flipped_byte_of_any_recorded_file_is_found_at_load(bundle_copy):
    draw, manifest = random.Random(7), load_manifest(bundle_copy / "bundle.json")
    names = [record.path for record in manifest.files if record.path not in (WEIGHTS, "README.md")]
    for name in [*names, *draw.choices(names, k=20)]:
        path = bundle_copy / name
        intact = path.read_bytes()
        flip(path, draw.randrange(len(intact)), 1 << draw.randrange(8))
        with pytest.raises(InputError, match="recorded"):
            load_bundle(bundle_copy)
        path.write_bytes(intact)
    load_bundle(bundle_copy, whole=True)


def test_one_flipped_byte_of_the_manifest_is_refused_or_stays_a_manifest(bundle_copy):
    path, draw = bundle_copy / "bundle.json", random.Random(9)
    intact = path.read_bytes()
    for _ in range(60):
        flip(path, draw.randrange(len(intact)), 1 << draw.randrange(8))
        try:
            bundle = load_bundle(bundle_copy)
        except InputError as error:
            assert str(error).count("\n") == 0
        else:  # a record that nothing depends on, such as a version
            assert bundle.manifest.contract == bundle.schedule.contract == bundle.program.contract
        path.write_bytes(intact)
