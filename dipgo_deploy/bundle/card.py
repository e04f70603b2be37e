"""The model card of a bundle: its README.md, in Markdown."""

from __future__ import annotations

from dipgo_deploy.core.contract import Contract, SamplerSpec
from dipgo_deploy.core.program import Program, memory_bytes
from dipgo_deploy.core.sampler import LinearSampler
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.graphs.trace import Trace
from dipgo_deploy.models import LoadedModel
from dipgo_deploy.models.sampler_coefficients import read_sampler

__all__ = ["model_card"]


def model_card(model: LoadedModel, schedule: Schedule, program: Program, traced: Trace) -> str:
    """The card of a bundle.

    Args:
        model: the exported model.
        schedule: the schedule that was exported.
        program: the schedule's program.
        traced: the trace behind the graphs.

    Returns:
        Markdown text.
    """
    contract = schedule.contract
    memory = memory_bytes(program, contract.batch.opt)
    origin = ", ".join(f"{key} {value}" for key, value in schedule.origin.items())
    return f"""# {contract.model_class}, {contract.sampler.class_name} with {contract.sampler.calls} calls

A bundle of dipgo-deploy: a reuse schedule compiled to ONNX graphs. Schedule: {origin}.

| | |
|---|---|
| network calls per image | {program.nfe} of {schedule.steps} |
| MACs per image, papers | {program.macs.papers / 1e9:.4g} G of {program.full_macs.papers / 1e9:.4g} G |
| MACs per image, full | {program.macs.full / 1e9:.4g} G of {program.full_macs.full / 1e9:.4g} G |
| layout, graphs | {program.layout}, {len(program.graphs)} |
| sampler's steps | {_steps_text(contract.sampler)} |
| guidance, dtype | {contract.guidance}, {contract.dtype} |
| weights on disk | {traced.blocks.weight_bytes / 2**20:.1f} MiB, one file |
| slots for {contract.batch.opt} images | {memory["slots"] / 2**20:.2f} MiB |
{_lora_rows(model)}
Fixed: sampler, number of steps, guidance layout, latent shape {_latent_text(contract)}. Run it with
`dipgo-deploy generate`, check it with `dipgo-deploy verify`, measure it with `dipgo-deploy bench`.
"""


def _latent_text(contract: Contract) -> str:
    """The latent's shape, with the ranges of free sizes."""
    sizes = (str(contract.ranges[dim]) if isinstance(dim, str) else str(dim) for dim in contract.latent_dims)
    return f"({', '.join(sizes)})"


def _steps_text(sampler: SamplerSpec) -> str:
    reading = read_sampler(sampler)
    if isinstance(reading, LinearSampler):
        return "folded into the program"
    return f"by {sampler.class_name} itself, because it {reading.reason}"


def _lora_rows(model: LoadedModel) -> str:
    """A row for each text encoder that adapters are fused into."""
    files_of_encoder = {
        name: ", ".join(f"{lora.path.name} x {lora.scale:g}" for lora in loras)
        for name, loras in model.text_loras.items()
    }
    return "".join(f"| LoRA fused into {name} | {files} |\n" for name, files in files_of_encoder.items())
