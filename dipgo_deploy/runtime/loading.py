"""Open a bundle folder: every document and the size of every file are checked before anything is made of them."""

from __future__ import annotations

from pathlib import Path

from dipgo_deploy.core.bundle import BUNDLE_FILE, BundleManifest
from dipgo_deploy.core.contract import check_same_contract
from dipgo_deploy.core.disk import check_digest, path_inside
from dipgo_deploy.core.engine import ENGINES_FOLDER
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.files import load_block_graph, load_manifest, load_program, load_schedule
from dipgo_deploy.core.schedule import MAIN_EXPERT, check_schedule
from dipgo_deploy.graphs.trace import MASTER_FILE
from dipgo_deploy.graphs.weights import WEIGHTS_FILE
from dipgo_deploy.models import LoadedModel
from dipgo_deploy.runtime.loaded import LoadedBundle

__all__ = ["load_bundle"]


def load_bundle(path: str | Path, *, whole: bool = False, model: LoadedModel | None = None) -> LoadedBundle:
    """Open a bundle folder. Sizes of all files are checked; ``whole`` checks every sha256 too.

    ``model`` is the one that was exported: a bundle of a class for which no preset ships needs it for what asks the
    PyTorch model. Raises InputError where the folder is no bundle, newer than this program, or any part is damaged or
    does not fit.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: give a bundle that export wrote")
    if not (folder / BUNDLE_FILE).is_file():
        raise InputError(f"{folder} has no {BUNDLE_FILE}: it is no bundle, or its export was interrupted; export again")
    manifest = load_manifest(folder / BUNDLE_FILE)
    for record in manifest.files:
        if f"/{ENGINES_FOLDER}/" in record.path and not (folder / record.path).exists():
            continue  # nothing but preflight needs it, which says so
        small = record.bytes < 1_000_000 or record.path.endswith(".onnx")
        check_digest(path_inside(folder, record.path), record, whole=whole or small)
    _check_recorded(manifest, folder)
    schedule = load_schedule(folder / "schedule.json")
    program = load_program(folder / "program.json")
    if odd := sorted(manifest.graphs.keys() ^ program.graph_of_name.keys()):
        raise InputError(f"{folder / BUNDLE_FILE} and its program differ in graph {odd[0]!r}: export the bundle again")
    blocks = load_block_graph(folder / "blocks.json")
    check_same_contract(manifest.contract, schedule.contract, f"{folder / 'schedule.json'}")
    check_same_contract(manifest.contract, program.contract, f"{folder / 'program.json'}")
    check_schedule(schedule, blocks.block_names)
    return LoadedBundle(folder, manifest, schedule, program, blocks, model)


def _check_recorded(manifest: BundleManifest, folder: Path) -> None:
    """Everything that is read must be recorded: an unrecorded file has no digest."""
    recorded = {record.path for record in manifest.files}
    wanted = {"schedule.json", "program.json", "blocks.json", "model_index.json"}
    wanted |= {*manifest.graphs.values(), *manifest.weights.values()}
    wanted |= {f"{manifest.denoiser}/{name}" for name in (MASTER_FILE, WEIGHTS_FILE, "config.json")}
    if missing := sorted(wanted - recorded):
        raise InputError(f"{folder / BUNDLE_FILE} has no digest of {missing[0]}: export the bundle again")
    if MAIN_EXPERT not in manifest.weights:
        raise InputError(f"{folder / BUNDLE_FILE} names no weights of {MAIN_EXPERT}: export the bundle again")
