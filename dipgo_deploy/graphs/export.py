"""Export: schedule in, bundle out.

1. The model is traced (or its trace found), and the schedule checked against it.
2. Budget, lowering, cutting.
3. Everything is written to a folder under a temporary name, the manifest last, which is then renamed.
A bundle is also a diffusers folder: the denoiser's folder holds config, weights and graphs, and loads with
``from_pretrained``; scheduler and other components stand beside it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dipgo_deploy.core.bundle import BUNDLE_FILE, BundleManifest
from dipgo_deploy.core.disk import check_target, path_inside, records_of, write_atomic
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.files import save_block_graph, save_manifest, save_program, save_schedule
from dipgo_deploy.core.program import Layout, Program, memory_bytes
from dipgo_deploy.core.schedule import MAIN_EXPERT, Schedule, check_schedule
from dipgo_deploy.core.staging import staged
from dipgo_deploy.graphs.cut import cut_program
from dipgo_deploy.graphs.trace import MASTER_FILE, Trace, trace
from dipgo_deploy.graphs.weights import WEIGHTS_FILE
from dipgo_deploy.lowering import LowerOptions, limit_graphs, lower
from dipgo_deploy.models import LoadedModel
from dipgo_deploy.models.contracts import library_versions
from dipgo_deploy.models.sampler_coefficients import read_sampler
from dipgo_deploy.models.text_loras import save_text_encoder

__all__ = ["ExportOptions", "export"]


@dataclass(frozen=True)
class ExportOptions:
    """Layout; at most ``max_graphs`` compute sets; ``dtype`` of network and features, None for the model's own."""

    layout: Layout = "subnets"
    max_graphs: int | None = None
    dtype: str | None = None


def export(model: LoadedModel, schedule: Schedule, out: Path, options: ExportOptions = ExportOptions()) -> Path:
    """Write the bundle of ``schedule`` for ``model`` to the folder ``out`` and return it.

    Raises InputError where the schedule was made for another model or ``out`` holds something that is no bundle.
    """
    out = out.absolute()
    _check_target(out)
    if not model.has_weights:
        raise InputError(f"this {model.class_name} has shapes alone, a bundle needs its weights: load it with them")
    _check_model(model, schedule)
    model = model.with_latent_shape(schedule.contract.latent_shape)
    if options.dtype is not None and options.dtype != model.dtype:
        model = model.as_dtype(options.dtype)
        contract = replace(schedule.contract, dtype=model.dtype, model_digest=model.digest)
        schedule = replace(schedule, contract=contract)
    traced = trace(model, granularity=schedule.granularity)
    check_schedule(schedule, traced.blocks.block_names)
    if options.max_graphs is not None:
        schedule = limit_graphs(schedule, traced.blocks, options.max_graphs)
    sampler = read_sampler(schedule.contract.sampler)
    lowering = LowerOptions(options.layout, share_graphs=options.max_graphs is not None)
    program = lower(schedule, traced.blocks, sampler, lowering)
    graphs = cut_program(traced.master, program, traced.blocks)
    with staged(out) as temporary:
        _write(temporary, model, traced, schedule, program, graphs)
    return out


def _check_target(out: Path) -> None:
    check_target(out, folder=True)
    if out.exists() and not ((out / BUNDLE_FILE).is_file() or not any(out.iterdir())):
        raise InputError(f"{out} exists and is no bundle: choose another --out")


def _check_model(model: LoadedModel, schedule: Schedule) -> None:
    contract = schedule.contract
    if (contract.model_class, contract.model_digest) != (model.class_name, model.digest):
        raise InputError(
            f"the schedule was made for a {contract.model_class} ({contract.model_digest[:12]}), this model is a "
            f"{model.class_name} ({model.digest[:12]}): search a schedule for this model"
        )


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
    write_atomic(folder / "README.md", _card(model, schedule, program, traced))
    manifest = BundleManifest(
        contract=schedule.contract,
        denoiser=model.component,
        files=records_of(folder),
        graphs={name: f"{model.component}/{name}.onnx" for name in graphs},
        weights={MAIN_EXPERT: f"{model.component}/{WEIGHTS_FILE}"},
        model_weight_bytes=model.weight_bytes,
        versions=library_versions(),
    )
    save_manifest(folder / BUNDLE_FILE, manifest)


def _write_pipeline(folder: Path, model: LoadedModel) -> None:
    """Scheduler, other components and the index, as diffusers has them."""
    index = {"_class_name": "DiffusionPipeline", model.component: ["diffusers", model.class_name]}
    if model.folder is not None and (model.folder / "model_index.json").is_file():
        index = json.loads((model.folder / "model_index.json").read_text(encoding="utf-8"))
        for name, entry in index.items():
            source = path_inside(model.folder, name)
            if name in model.text_loras:
                save_text_encoder(model, name, path_inside(folder, name))
            elif isinstance(entry, list) and name != model.component and source.is_dir():
                shutil.copytree(source, path_inside(folder, name))
    if not (folder / "scheduler").exists() and model.scheduler_config:
        write_atomic(folder / "scheduler" / "scheduler_config.json", json.dumps(dict(model.scheduler_config), indent=2))
    write_atomic(folder / "model_index.json", json.dumps(index, indent=2) + "\n")


def _card(model: LoadedModel, schedule: Schedule, program: Program, traced: Trace) -> str:
    contract = schedule.contract
    memory = memory_bytes(program, contract.batch.opt)
    made = ", ".join(f"{key} {value}" for key, value in schedule.origin.items())
    return f"""# {contract.model_class}, {contract.sampler.class_name} with {contract.sampler.calls} calls

A bundle of dipgo-deploy: a reuse schedule compiled to ONNX graphs. Schedule: {made}.

| | |
|---|---|
| network calls per image | {program.nfe} of {schedule.steps} |
| MACs per image, papers | {program.macs.papers / 1e9:.4g} G of {program.full_macs.papers / 1e9:.4g} G |
| MACs per image, full | {program.macs.full / 1e9:.4g} G of {program.full_macs.full / 1e9:.4g} G |
| layout, graphs | {program.layout}, {len(program.graphs)} |
| guidance, dtype | {contract.guidance}, {contract.dtype} |
| weights on disk | {traced.blocks.weight_bytes / 2**20:.1f} MiB, one file |
| slots for {contract.batch.opt} images | {memory["slots"] / 2**20:.2f} MiB |
{_text_loras(model)}
Fixed: sampler, number of steps, guidance layout, latent shape {contract.latent_shape}. Run it with
`dipgo-deploy generate`, check it with `dipgo-deploy verify`, measure it with `dipgo-deploy bench`.
"""


def _text_loras(model: LoadedModel) -> str:
    """A row for each text encoder that adapters are fused into."""
    named = {
        name: ", ".join(f"{lora.path.name} x {lora.scale:g}" for lora in found)
        for name, found in model.text_loras.items()
    }
    return "".join(f"| LoRA fused into {name} | {files} |\n" for name, files in named.items())
