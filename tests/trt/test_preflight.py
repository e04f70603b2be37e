from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from dipgo_deploy.bundle.manifest import add_records
from dipgo_deploy.core.contract import BatchRange
from dipgo_deploy.core.digests import sha256_of
from dipgo_deploy.core.engine import EngineRecord, EngineTensor
from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.files import load_engine_record, load_manifest, load_program, save_engine_record
from dipgo_deploy.graphs.untrusted import graph_digest
from dipgo_deploy.trt.driver import CudaDriver, Device
from dipgo_deploy.trt.job import graph_tensors, profile_of
from dipgo_deploy.trt.preflight import preflight
from dipgo_deploy.trt.store import note_built
from dipgo_deploy.trt.target import Target

SM89 = Device(0, "NVIDIA L4", (8, 9), 24 << 30)
FOLDER = "unet/engines/rtx-1.7-sm89"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def target(version: str = "1.7", name: str = "rtx", device: Device = SM89) -> Target:
    return Target(name, SimpleNamespace(), version, CudaDriver((device,), "13.0", ""))


@pytest.fixture
def bundle(bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with a fake engine and a correct record for every graph. The preflight loads no engine."""
    monkeypatch.setattr("dipgo_deploy.trt.store.cache_folder", lambda: tmp_path / "cache")
    manifest, program = load_manifest(bundle_copy / "bundle.json"), load_program(bundle_copy / "program.json")
    home = bundle_copy / FOLDER
    home.mkdir(parents=True)
    for graph, tensors in graph_tensors(program).items():
        engine = home / f"{graph}.engine"
        engine.write_bytes(graph.encode())
        record = EngineRecord(
            graph=graph,
            digest=graph_digest(graph_file(bundle_copy, graph).read_bytes()),
            graph_digest=graph_digest(graph_file(bundle_copy, graph).read_bytes()),
            weights_digest=sha256_of(bundle_copy / WEIGHTS),
            target="rtx",
            version="1.7",
            gpu="sm89",
            precision="float32",
            flags=(),
            batch=BatchRange(1, 4, 8),
            io={name: EngineTensor("input", (-1,) * len(spec.shape), spec.dtype) for name, spec in tensors.items()},
            profile={
                name: profile_of(program.contract, BatchRange(1, 4, 8), {}, spec) for name, spec in tensors.items()
            },
            sha256=sha256_of(engine),
            bytes=len(graph),
            weight_bytes=0,
            activation_bytes=None,
            layers=1,
            seconds=0.0,
            build_memory_bytes=0,
        )
        save_engine_record(engine.with_suffix(".json"), record)
        note_built(engine, record)
    assert manifest.graphs
    add_records(bundle_copy, home.iterdir())
    return bundle_copy


def graph_file(folder: Path, graph: str) -> Path:
    return folder / load_manifest(folder / "bundle.json").graphs[graph]


def checked(folder: Path, chosen: Target | None = None, batch: int = 4, trust: bool = False) -> dict:
    manifest, program = load_manifest(folder / "bundle.json"), load_program(folder / "program.json")
    graphs = {name: folder / path for name, path in manifest.graphs.items()}
    sizes = program.contract.sizes(batch)
    return preflight(folder, manifest, program, graphs, folder / WEIGHTS, chosen or target(), sizes, trust=trust)


def rewrite(folder: Path, graph: str = "subnet_00", **changes: object) -> None:
    path = folder / FOLDER / f"{graph}.json"
    save_engine_record(path, replace(load_engine_record(path), **changes))


def test_engines_that_fit_are_named_by_graph(bundle: Path) -> None:
    engines = checked(bundle)
    assert engines.keys() == load_manifest(bundle / "bundle.json").graphs.keys()
    assert engines["subnet_00"].path == bundle / FOLDER / "subnet_00.engine"
    assert engines["subnet_00"].record.graph == "subnet_00"


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (
            target("1.8"),
            r"rtx 1.8 needs engines for sm89, the bundle has rtx-1.7-sm89: build engines of the bundle on this machine",
        ),
        (
            target(device=Device(0, "NVIDIA RTX 5090", (12, 0), 1)),
            r"needs engines for sm120, the bundle has rtx-1.7-sm89",
        ),
        (target(name="tensorrt"), r"tensorrt 1.7 needs engines for sm89"),
    ],
)
def test_engines_of_another_machine_are_refused(bundle: Path, chosen: Target, words: str) -> None:
    with pytest.raises(InputError, match=words):
        checked(bundle, chosen)


def test_a_bundle_without_engines_says_so(bundle_copy: Path) -> None:
    with pytest.raises(
        InputError, match="needs engines for sm89, the bundle has no engines: build engines of the bundle"
    ):
        checked(bundle_copy)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"graph_digest": "0" * 64}, r"was built from another graph \(000000000000\) than the bundle's"),
        ({"weights_digest": "1" * 64}, r"was built from other weights \(111111111111\) than the bundle's \(\w{12}\)"),
        ({"gpu": "sm86"}, r"built for sm86, this GPU is sm89 \(NVIDIA L4\)"),
        ({"version": "1.6"}, "built with rtx 1.6, 1.7 is installed"),
        ({"target": "tensorrt"}, "built with tensorrt, requested is rtx"),
        ({"io": {}}, "the program binds tensor 'timestep', the network has none"),
        ({"sha256": "0" * 64}, "is not the engine that the bundle's manifest records"),
    ],
)
def test_a_record_that_does_not_fit_is_refused_with_wanted_and_found(bundle: Path, changes, words: str) -> None:
    rewrite(bundle, **changes)
    with pytest.raises(InputError, match=words):
        checked(bundle)


def test_a_type_other_than_the_slots_is_refused(bundle: Path) -> None:
    io = load_engine_record(bundle / FOLDER / "subnet_00.json").io
    rewrite(bundle, io={name: replace(tensor, dtype="float16") for name, tensor in io.items()})
    with pytest.raises(InputError, match="the program needs .* in float32, the network has float16: re-export"):
        checked(bundle)


@pytest.mark.parametrize("batch", [9, 64])
def test_a_batch_past_the_profile_is_refused(bundle: Path, batch: int) -> None:
    with pytest.raises(
        UsageError,
        match=rf"batch must be 1 to 8 for engine subnet_00, got {batch}: .* for batch {batch}-{batch}-{batch}",
    ):
        checked(bundle, batch=batch)


def test_a_static_engine_takes_one_batch_alone(bundle: Path) -> None:
    rewrite(bundle, profile={}, batch=BatchRange(4, 4, 4))
    assert checked(bundle, batch=4)
    with pytest.raises(UsageError, match="batch must be 4 to 4 for engine"):
        checked(bundle, batch=3)


def test_a_missing_and_a_changed_engine_are_refused(bundle: Path) -> None:
    engine = bundle / FOLDER / "subnet_00.engine"
    engine.write_bytes(b"subnet_0X")
    with pytest.raises(InputError, match="differs from its recorded sha256"):
        checked(bundle)
    engine.with_suffix(".json").unlink()
    with pytest.raises(InputError, match="has no engine for graph subnet_00"):
        checked(bundle)


def test_an_engine_of_elsewhere_is_loaded_only_on_request(bundle: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("dipgo_deploy.trt.store.cache_folder", lambda: tmp_path / "another machine")
    with pytest.raises(InputError, match="was not built on this machine, and an engine is code: .*set trust_engines"):
        checked(bundle)
    assert checked(bundle, trust=True)


def test_compatible_engines_serve_later_versions_and_gpus(bundle: Path) -> None:
    for graph in load_manifest(bundle / "bundle.json").graphs:
        rewrite(bundle, graph, flags=("version_compatible", "hardware_compatible"))
    assert checked(bundle, target("1.8", device=Device(0, "NVIDIA H100", (9, 0), 1)))
    with pytest.raises(
        InputError,
        match="rtx 2.0 needs engines for sm89, the bundle has rtx-1.7-sm89: build engines of the bundle on this",
    ):
        checked(bundle, target("2.0"))
