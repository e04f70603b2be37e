"""Load a bundle folder: every document and every file are checked before anything is made of them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from dipgo_deploy.bundle.bundle import Bundle
from dipgo_deploy.bundle.files import check_files
from dipgo_deploy.core.bundle import BUNDLE_FILE, BundleManifest
from dipgo_deploy.core.contract import check_same_contract
from dipgo_deploy.core.disk import missing_text
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.files import load_block_graph, load_manifest, load_program, load_schedule
from dipgo_deploy.core.schedule import MAIN_EXPERT, check_schedule
from dipgo_deploy.graphs.cut import MASTER_FILE
from dipgo_deploy.graphs.weights import WEIGHTS_FILE
from dipgo_deploy.models import LoadedModel

__all__ = ["load_bundle"]


def load_bundle(
    path: str | Path,
    *,
    whole: bool = False,
    model: LoadedModel | None = None,
    trust_weights: bool = False,
    replaced: Collection[str] = (),
) -> Bundle:
    """Load a bundle folder.

    Args:
        path: a folder that ``export`` wrote.
        whole: hash every file now. By default a large file is hashed once, and again after it changed.
        model: the exported model, for a bundle of a class without a shipped preset, or of a module with behaviour of
            its own.
        trust_weights: check large files by size only.
        replaced: components that the caller replaces, such as ``vae``. Their files are not checked.

    Returns:
        The bundle. Graphs and model are loaded when they are first used.

    Raises:
        InputError: the folder is not a bundle, is newer than this program, or a part is damaged or does not fit.
    """
    folder = Path(path)
    if not folder.is_dir():
        problem = missing_text(folder) if folder.is_symlink() else "is not a folder"
        raise InputError(f"{folder} {problem}: give a bundle that export wrote")
    if not (folder / BUNDLE_FILE).is_file():
        raise InputError(f"{folder} has no {BUNDLE_FILE}: it is not a bundle, or its export was interrupted; re-export")
    manifest = load_manifest(folder / BUNDLE_FILE)
    check_files(folder, manifest, whole=whole, trust_weights=trust_weights, replaced=replaced)
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
