"""The options that several commands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dipgo_deploy.cli.units import byte_count
from dipgo_deploy.core.errors import UsageError

if TYPE_CHECKING:
    from dipgo_deploy.core.precision import HalfType

__all__ = [
    "Backend",
    "Batch",
    "Bf16",
    "Blocks",
    "BundleFolder",
    "Compiled",
    "CudaGraph",
    "Device",
    "Config",
    "Dtype",
    "FormatName",
    "Fp16",
    "GpuMemory",
    "Granularity",
    "GuidanceLayout",
    "GuidanceScale",
    "Json",
    "Layout",
    "Lora",
    "Meta",
    "Model",
    "OwnModel",
    "PresetName",
    "RandomWeights",
    "TrustEngines",
    "Revision",
    "Sampler",
    "SamplerName",
    "Size",
    "Steps",
    "Variant",
    "half_type",
    "patterns_of",
    "run_options",
]

Json = Annotated[bool, typer.Option("--json", help="End stdout with one JSON document.")]
Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A shipped model, a diffusers folder, a .safetensors checkpoint, a hub name, or module:attribute.",
    ),
]
RandomWeights = Annotated[
    str | None,
    typer.Option(metavar="CONFIG", help="In place of MODEL: an architecture, as sd15, or a config.json."),
]
Dtype = Annotated[Literal["float32", "float16", "bfloat16"], typer.Option(help="Number format of the network.")]
Variant = Annotated[str | None, typer.Option(metavar="NAME", help="Weight files of that variant, such as fp16.")]
Revision = Annotated[str | None, typer.Option(metavar="NAME", help="Branch, tag or commit of a hub name.")]
Config = Annotated[
    str | None, typer.Option(metavar="CONFIG", help="Architecture of a checkpoint whose keys do not tell it.")
]
Meta = Annotated[bool, typer.Option("--meta", help="Shapes alone: no weights are loaded, no memory is taken.")]
OwnModel = Annotated[
    str | None,
    typer.Option("--model", metavar="MODULE:ATTRIBUTE", help="The exported model, where its class is your own."),
]
BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that export wrote.")]
Granularity = Annotated[Literal["stage", "layer", "branch"], typer.Option(help="How finely the model is divided.")]
Blocks = Annotated[str | None, typer.Option(metavar="PATTERN,…", help="Blocks by dotted path instead of a preset.")]
Layout = Annotated[
    Literal["subnets", "segments"], typer.Option(help="A graph for each kind of step, or every weight in one graph.")
]
Backend = Annotated[
    Literal["onnxruntime", "torch", "tensorrt", "rtx"],
    typer.Option(help="What runs the graphs; tensorrt and rtx run engines that build-engine made."),
]
Device = Annotated[Literal["cpu", "cuda"] | None, typer.Option(help="cpu or cuda; where engines run it is cuda.")]
CudaGraph = Annotated[bool, typer.Option("--cuda-graph", help="Replay calls as CUDA graphs.")]
Compiled = Annotated[bool, typer.Option("--compile", help="torch.compile (torch).")]
GpuMemory = Annotated[str | None, typer.Option(metavar="SIZE", help="Most memory of engines, such as 8G; others wait.")]
TrustEngines = Annotated[bool, typer.Option("--trust-engines", help="Load engines that were not built here.")]
Fp16 = Annotated[bool, typer.Option("--fp16", help="Typed float16, with islands of float32 where needed.")]
Bf16 = Annotated[bool, typer.Option("--bf16", help="Typed bfloat16.")]
Lora = Annotated[
    list[str] | None,
    typer.Option("--lora", metavar="FILE[:SCALE]", help="LoRA (.safetensors) to fuse into MODEL; may be repeated."),
]
FormatName = Literal["deepcache", "fora", "smoothcache", "cache-dit", "dipgo"]
"""Formats of other tools: the names in `search.interchange.FORMATS`, which brings too much to be asked for help."""

Batch = Annotated[int, typer.Option(min=1, help="Images per call.")]
Size = Annotated[
    str | None,
    typer.Option(metavar="HEIGHTxWIDTH", help="Size of the latent, such as 96x96; the model's own if left out."),
]
SamplerName = Literal[
    "ddim", "ddpm", "deis", "dpmpp-2m", "dpmpp-2m-karras", "euler", "euler-a", "flow-euler", "heun", "lms", "pndm",
    "unipc",
]  # fmt: skip
"""The names in `models.SAMPLERS`, which brings too much to be asked for help."""

PresetName = Literal["default", "paper", "paper-dit"]
"""The names in `search.dipgo_options.PRESETS`."""

Sampler = Annotated[SamplerName | None, typer.Option(help="Sampler by name; the model's own if left out.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Steps of the sampler's full run; the model's own if left out.")]
GuidanceLayout = Annotated[
    Literal["none", "concat"] | None,
    typer.Option("--guidance", help="Classifier-free guidance layout; the model's own if left out."),
]
GuidanceScale = Annotated[
    float | None, typer.Option("--guidance", min=0.0, help="Guidance scale; 2 under guidance if left out.")
]


def run_options(
    backend: str,
    device: str | None,
    cuda_graph: bool,
    compiled: bool,
    gpu_memory: str | None,
    trust_engines: bool,
) -> dict[str, Any]:
    """The options of a run as keyword arguments of GenerateOptions and BenchOptions, refused before anything is loaded.

    Raises UsageError for an option of another backend, MissingError for a target that cannot run here.
    """
    on_engines = backend in ("tensorrt", "rtx")
    if on_engines and device == "cpu":
        raise UsageError(f"backend {backend} runs on a GPU, --device cpu is asked for: leave one out")
    for name, given in {"gpu-memory": gpu_memory, "trust-engines": trust_engines}.items():
        if given and not on_engines:
            raise UsageError(f"--{name} belongs to backends tensorrt and rtx, found {backend}: leave it out")
    if compiled and backend != "torch":
        raise UsageError(f"--compile belongs to backend torch, found {backend}: leave it out")
    if on_engines:
        from dipgo_deploy.trt.target import load_target

        load_target(backend, "run")
    return {
        "backend": backend,
        "device": "cuda" if on_engines else device or "cpu",
        "cuda_graph": cuda_graph,
        "compiler": "inductor" if compiled else None,
        "gpu_memory": None if gpu_memory is None else byte_count(gpu_memory),
        "trust_engines": trust_engines,
    }


def half_type(fp16: bool, bf16: bool) -> HalfType | None:
    """The half precision that ``--fp16`` or ``--bf16`` asks for; UsageError for both."""
    if fp16 and bf16:
        raise UsageError("--fp16 and --bf16 exclude each other: choose one")
    return "float16" if fp16 else "bfloat16" if bf16 else None


def patterns_of(blocks: str | None) -> tuple[str, ...] | None:
    """The patterns of a ``--blocks`` option; UsageError for an empty one."""
    if blocks is None:
        return None
    patterns = tuple(pattern.strip() for pattern in blocks.split(","))
    if not all(patterns):
        raise UsageError(f"--blocks {blocks!r} holds an empty pattern: give dotted paths separated by commas")
    return patterns
