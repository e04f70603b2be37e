"""Export: write the bundle of a schedule, or a copy of a bundle.

1. The model is traced, unless its trace is in the cache. The schedule is checked against the trace.
2. The schedule is limited to a number of graphs, lowered and cut.
3. Everything is written to a folder with a temporary name, the manifest last. Then the folder is renamed.

A bundle is also a diffusers pipeline folder. The denoiser's folder holds config, weights and graphs, and
``from_pretrained`` loads it. Scheduler and other components are next to the denoiser's folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dipgo_deploy.bundle.bundle import Bundle
from dipgo_deploy.bundle.card import model_card
from dipgo_deploy.bundle.files import is_prose
from dipgo_deploy.bundle.replacing import check_contract_of, check_files_of, check_program_of, older_bundle
from dipgo_deploy.core.blocks import fit_contract
from dipgo_deploy.core.bundle import BUNDLE_FILE, BundleManifest
from dipgo_deploy.core.digests import records_of
from dipgo_deploy.core.disk import check_target, copy_folder, missing_text, path_inside, read_json, staged, write_atomic
from dipgo_deploy.core.engine import ENGINES_FOLDER
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.files import load_manifest, save_block_graph, save_manifest, save_program, save_schedule
from dipgo_deploy.core.program import Layout, Program
from dipgo_deploy.core.schedule import MAIN_EXPERT, Schedule, check_schedule, in_order
from dipgo_deploy.graphs.cut import MASTER_FILE, cut_program
from dipgo_deploy.graphs.trace import Trace, trace
from dipgo_deploy.graphs.weights import WEIGHTS_FILE
from dipgo_deploy.lowering import LowerOptions, limit_graphs, lower
from dipgo_deploy.models import LoadedModel
from dipgo_deploy.models.contracts import library_versions
from dipgo_deploy.models.sampler_coefficients import read_sampler
from dipgo_deploy.models.text_loras import save_text_encoder

__all__ = ["ExportOptions", "copy_bundle", "export"]


@dataclass(frozen=True)
class ExportOptions:
    """How to export.

    Attributes:
        layout: ``subnets`` or ``segments``.
        max_graphs: at most this many distinct graphs. None sets no limit.
        dtype: of network and features. None keeps the model's own.
        replace: whether a bundle that was made from other inputs is replaced.
    """

    layout: Layout = "subnets"
    max_graphs: int | None = None
    dtype: str | None = None
    replace: bool = True


def export(model: LoadedModel, schedule: Schedule, out: Path, options: ExportOptions = ExportOptions()) -> Path:
    """Write the bundle of a schedule.

    Args:
        model: the model that the schedule was made for.
        schedule: what to compute at which step.
        out: the folder to write. An older bundle there is replaced, and its engines move along.
        options: layout, number of graphs and dtype.

    Returns:
        ``out``, as an absolute path.

    Raises:
        InputError: the schedule was made for another model, or ``out`` holds something that is not a bundle, or not
            this bundle, see ``options.replace``.
    """
    out = out.absolute()
    _check_target(out)
    if not model.has_weights:
        raise InputError(f"this {model.class_name} was loaded without weights, a bundle needs them: load them too")
    _check_model(model, schedule)
    _check_components(model)
    model = model.for_contract(schedule.contract)
    if options.dtype is not None and options.dtype != model.dtype:
        model = model.as_dtype(options.dtype)
        contract = replace(schedule.contract, dtype=model.dtype, model_digest=model.digest)
        schedule = replace(schedule, contract=contract)
    older = None if options.replace else older_bundle(out)
    if older is not None:
        check_contract_of(older, schedule.contract)
    traced = trace(model, granularity=schedule.granularity)
    schedule = in_order(schedule, traced.blocks.block_names)
    check_schedule(schedule, traced.blocks.block_names)
    schedule = replace(schedule, contract=fit_contract(schedule.contract, traced.blocks))
    if options.max_graphs is not None:
        schedule = limit_graphs(schedule, traced.blocks, options.max_graphs)
    sampler = read_sampler(schedule.contract.sampler)
    lowering = LowerOptions(options.layout, share_graphs=options.max_graphs is not None)
    program = lower(schedule, traced.blocks, sampler, lowering)
    graphs = cut_program(traced.master, program, traced.blocks)
    if older is not None:
        check_program_of(older, schedule, program)
    with staged(out) as temporary:
        _write(temporary, model, traced, schedule, program, graphs)
        if older is not None:
            check_files_of(older, load_manifest(temporary / BUNDLE_FILE))
    return out


def _check_target(out: Path) -> None:
    """Raise InputError unless ``out`` can become a bundle: a new folder, an empty folder or an older bundle."""
    check_target(out, folder=True)
    if out.exists() and not ((out / BUNDLE_FILE).is_file() or not any(out.iterdir())):
        raise InputError(f"{out} exists but is not a bundle: choose another folder")


def _check_model(model: LoadedModel, schedule: Schedule) -> None:
    contract = schedule.contract
    if contract.model_class != model.class_name or not model.has_digest(contract.model_digest):
        behaviour = f" with behaviour of its own ({model.behaviour.summary})" if model.behaviour else ""
        raise InputError(
            f"the schedule was made for a {contract.model_class} ({contract.model_digest[:12]}), this model is a "
            f"{model.class_name} ({model.digest[:12]}){behaviour}: search a schedule for this model"
        )


def _check_components(model: LoadedModel) -> None:
    """Raise InputError for a component that is a broken link. A component that is absent is left out."""
    for name in _index_of(model):
        assert model.folder is not None
        component = path_inside(model.folder, name)
        if component.is_symlink() and not component.exists():
            raise InputError(f"{component} {missing_text(component)}: restore or remove it")


def _index_of(model: LoadedModel) -> dict[str, Any]:
    """``model_index.json`` of the folder that a model comes from. Empty for a model without a pipeline folder."""
    if model.folder is None or not (model.folder / "model_index.json").is_file():
        return {}
    return read_json(model.folder / "model_index.json")


def _write(
    folder: Path,
    model: LoadedModel,
    traced: Trace,
    schedule: Schedule,
    program: Program,
    graphs: Mapping[str, bytes],
) -> None:
    denoiser = folder / model.component
    denoiser.mkdir()
    for name in ("config.json", WEIGHTS_FILE, MASTER_FILE):
        shutil.copyfile(traced.folder / name, denoiser / name)
    for name, content in graphs.items():
        write_atomic(denoiser / f"{name}.onnx", content)
    _write_pipeline(folder, model)
    save_block_graph(folder / "blocks.json", traced.blocks)
    save_schedule(folder / "schedule.json", schedule)
    save_program(folder / "program.json", program)
    write_atomic(folder / "README.md", model_card(model, schedule, program, traced))
    manifest = BundleManifest(
        contract=schedule.contract,
        denoiser=model.component,
        files=records_of(folder),
        graphs={name: f"{model.component}/{name}.onnx" for name in graphs},
        weights={MAIN_EXPERT: f"{model.component}/{WEIGHTS_FILE}"},
        model_weight_bytes=model.weight_bytes,
        versions=library_versions(),
        behaviour=model.behaviour.summary,
    )
    save_manifest(folder / BUNDLE_FILE, manifest)


def _write_pipeline(folder: Path, model: LoadedModel) -> None:
    """Write the scheduler, other components and the index as diffusers saves them."""
    alone = {"_class_name": "DiffusionPipeline", model.component: ["diffusers", model.class_name]}
    index = _index_of(model)
    for name, entry in index.items():
        assert model.folder is not None
        source = path_inside(model.folder, name)
        if name in model.text_loras:
            save_text_encoder(model, name, path_inside(folder, name))
        elif isinstance(entry, list) and name != model.component and source.is_dir():
            copy_folder(source, path_inside(folder, name))
    if not (folder / "scheduler").exists() and model.scheduler_config:
        write_atomic(folder / "scheduler" / "scheduler_config.json", json.dumps(dict(model.scheduler_config), indent=2))
    write_atomic(folder / "model_index.json", json.dumps(index or alone, indent=2) + "\n")


def copy_bundle(bundle: Bundle, folder: Path) -> None:
    """Copy a bundle without the text encoders and the VAE around its denoiser. The manifest is written last.

    ``config.json`` of the copy is the model's, as diffusers saves it. Engines that are recorded but gone are left out.

    Args:
        bundle: what to copy.
        folder: the new folder. An older bundle there stays until the copy is complete.

    Raises:
        InputError: the folder holds something that is not a bundle, or cannot be written.
    """
    _check_target(folder)
    if folder.exists() and folder.samefile(bundle.folder):
        return
    try:
        with staged(folder) as temporary:
            _copy(bundle, temporary)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror or error}): choose another place") from None


def _copy(bundle: Bundle, folder: Path) -> None:
    manifest = bundle.manifest
    for path in (record.path for record in manifest.files if record.path != "model_index.json"):
        source = bundle.folder / path
        absent_engine = f"/{ENGINES_FOLDER}/" in path and not source.exists()
        # Prose is not checked when a bundle is loaded, so a link there could lead to any file of this machine.
        absent_prose = is_prose(path) and (source.is_symlink() or not source.is_file())
        if ("/" not in path or path.startswith(f"{manifest.denoiser}/")) and not (absent_engine or absent_prose):
            path_inside(folder, path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path_inside(bundle.folder, path), folder / path)
    shutil.copyfile(bundle.denoiser / "config.json", folder / "config.json")
    index = {"_class_name": "DiffusionPipeline", manifest.denoiser: ["diffusers", manifest.contract.model_class]}
    write_atomic(folder / "model_index.json", json.dumps(index, indent=2) + "\n")
    save_manifest(folder / BUNDLE_FILE, replace(manifest, files=records_of(folder)))
