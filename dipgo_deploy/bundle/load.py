"""Load a bundle folder: every document and the size of every file are checked before anything is made of them."""

from __future__ import annotations

from pathlib import Path

from dipgo_deploy.bundle.bundle import Bundle
from dipgo_deploy.core.bundle import BUNDLE_FILE, BundleManifest
from dipgo_deploy.core.contract import check_same_contract
from dipgo_deploy.core.disk import check_digest, path_inside
from dipgo_deploy.core.engine import ENGINES_FOLDER
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.files import load_block_graph, load_manifest, load_program, load_schedule
from dipgo_deploy.core.schedule import MAIN_EXPERT, check_schedule
from dipgo_deploy.graphs.cut import MASTER_FILE
from dipgo_deploy.graphs.weights import WEIGHTS_FILE
from dipgo_deploy.models import LoadedModel

__all__ = ["load_bundle"]

_SMALL_FILE = 64_000_000
"""Files below this many bytes are hashed at every load, in about 0.05 s. Larger files are hashed only on request."""


def load_bundle(path: str | Path, *, whole: bool = False, model: LoadedModel | None = None) -> Bundle:
    """Load a bundle folder.

    Args:
        path: a folder that ``export`` wrote.
        whole: check the sha256 of every file. By default large files are checked by size only.
        model: the exported model, for a bundle of a class without a shipped preset, or of a module with behaviour of
            its own.

    Returns:
        The bundle. Graphs and model are loaded when they are first used.

    Raises:
        InputError: the folder is not a bundle, is newer than this program, or a part is damaged or does not fit.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give a bundle that export wrote")
    if not (folder / BUNDLE_FILE).is_file():
        raise InputError(f"{folder} has no {BUNDLE_FILE}: it is not a bundle, or its export was interrupted; re-export")
    manifest = load_manifest(folder / BUNDLE_FILE)
    for record in manifest.files:
        if f"/{ENGINES_FOLDER}/" in record.path and not (folder / record.path).exists():
            continue  # Engines may be deleted by hand. The engine preflight reports a missing one.
        is_small = record.bytes < _SMALL_FILE or record.path.endswith(".onnx")
        check_digest(path_inside(folder, record.path), record, whole=whole or is_small)
    _check_recorded(manifest, folder)
    schedule = load_schedule(folder / "schedule.json")
    program = load_program(folder / "program.json")
    if odd := sorted(manifest.graphs.keys() ^ program.graph_of_name.keys()):
        raise InputError(f"{folder / BUNDLE_FILE} and its program differ in graph {odd[0]!r}: re-export the bundle")
    blocks = load_block_graph(folder / "blocks.json")
    check_same_contract(manifest.contract, schedule.contract, f"{folder / 'schedule.json'}")
    check_same_contract(manifest.contract, program.contract, f"{folder / 'program.json'}")
    check_schedule(schedule, blocks.block_names)
    return Bundle(folder, manifest, schedule, program, blocks, model)


def _check_recorded(manifest: BundleManifest, folder: Path) -> None:
    """Every file that is read must be recorded, because an unrecorded file has no digest."""
    recorded = {record.path for record in manifest.files}
    needed = {"schedule.json", "program.json", "blocks.json", "model_index.json"}
    needed |= {*manifest.graphs.values(), *manifest.weights.values()}
    needed |= {f"{manifest.denoiser}/{name}" for name in (MASTER_FILE, WEIGHTS_FILE, "config.json")}
    if missing := sorted(needed - recorded):
        raise InputError(f"{folder / BUNDLE_FILE} has no digest of {missing[0]}: re-export the bundle")
    if MAIN_EXPERT not in manifest.weights:
        raise InputError(f"{folder / BUNDLE_FILE} names no weights of {MAIN_EXPERT}: re-export the bundle")
