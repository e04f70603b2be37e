"""Options that several commands share, each declared once, and the functions that parse their values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from dipgo_deploy.core.contract import BatchRange
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.run_options import BackendName, DeviceName, RunOptions
from dipgo_deploy.core.tensors import SizeRange

if TYPE_CHECKING:
    from dipgo_deploy.core.precision import HalfType

__all__ = [
    "Backend",
    "Batch",
    "Bf16",
    "Blocks",
    "BundleFolder",
    "Compile",
    "Config",
    "CudaGraph",
    "Device",
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
    "MaxGraphs",
    "Meta",
    "OneSize",
    "Model",
    "OwnModel",
    "PresetName",
    "RandomWeights",
    "Revision",
    "Sampler",
    "SamplerName",
    "SamplerOptions",
    "Size",
    "Steps",
    "Threads",
    "TrustEngines",
    "TrustWeights",
    "Variant",
    "architectures",
    "batch_range",
    "token_range",
    "byte_count",
    "half_type",
    "patterns_of",
    "run_options",
]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document as the last line.")]
Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A shipped model, a diffusers folder, a .safetensors checkpoint, a hub name, or module:attribute.",
    ),
]
RandomWeights = Annotated[
    str | None,
    typer.Option(metavar="CONFIG", help="Instead of MODEL: an architecture such as sd15, or a config.json."),
]
Dtype = Annotated[Literal["float32", "float16", "bfloat16"], typer.Option(help="Number format of the network.")]
Variant = Annotated[str | None, typer.Option(metavar="NAME", help="Variant of the weight files, such as fp16.")]
Revision = Annotated[str | None, typer.Option(metavar="NAME", help="Branch, tag or commit of a hub name.")]
Config = Annotated[
    str | None, typer.Option(metavar="CONFIG", help="Architecture, if a checkpoint's keys do not identify it.")
]
Meta = Annotated[bool, typer.Option("--meta", help="Load shapes only: no weights, almost no memory.")]
OwnModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODULE:ATTRIBUTE",
        help="The exported model, if its class is your own or you changed the module.",
    ),
]
BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder, as export wrote it.")]
Granularity = Annotated[
    Literal["stage", "layer", "branch"], typer.Option(help="How finely the model is divided into blocks.")
]
Blocks = Annotated[str | None, typer.Option(metavar="PATTERN,…", help="Blocks by dotted path instead of a preset.")]
Layout = Annotated[
    Literal["subnets", "segments"],
    typer.Option(help="subnets: one graph for each kind of step. segments: every weight in exactly one graph."),
]
MaxGraphs = Annotated[int | None, typer.Option(min=1, help="Largest number of distinct graphs.")]
Backend = Annotated[
    BackendName, typer.Option(help="What runs the graphs. tensorrt and rtx run engines that build-engine built.")
]
Device = Annotated[DeviceName | None, typer.Option(help="cpu or cuda. Engines run on cuda.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of ONNX Runtime.")]
CudaGraph = Annotated[bool, typer.Option("--cuda-graph", help="Replay calls as CUDA graphs.")]
Compile = Annotated[bool, typer.Option("--compile", help="Use torch.compile (backend torch).")]
GpuMemory = Annotated[
    str | None, typer.Option(metavar="SIZE", help="GPU memory for engines, such as 8G. Others are evicted.")
]
TrustEngines = Annotated[bool, typer.Option("--trust-engines", help="Load engines that were not built here.")]
TrustWeights = Annotated[
    bool, typer.Option("--trust-weights", help="Check large files of the bundle by size only, not by sha256.")
]
Fp16 = Annotated[bool, typer.Option("--fp16", help="Typed float16, with fp32 fallback nodes where needed.")]
Bf16 = Annotated[bool, typer.Option("--bf16", help="Typed bfloat16, with fp32 fallback nodes where needed.")]
Lora = Annotated[
    list[str] | None,
    typer.Option("--lora", metavar="FILE[:SCALE]", help="LoRA (.safetensors) to fuse into MODEL. May be repeated."),
]
FormatName = Literal["deepcache", "fora", "smoothcache", "cache-dit", "dipgo"]
"""The names in ``search.interchange.FORMATS``, which is too heavy to import for ``--help``."""

Batch = Annotated[int, typer.Option(min=1, help="Images per call.")]
Size = Annotated[
    str | None,
    typer.Option(
        metavar="HEIGHTxWIDTH",
        help="Size of the latent, such as 96x96, or a range for runs to choose from, such as 32x32..128x128. Default: "
        "the model's own.",
    ),
]
OneSize = Annotated[
    str | None,
    typer.Option(
        "--size", metavar="HEIGHTxWIDTH", help="Size of the latent, if the bundle has a range. Default: the usual one."
    ),
]
Tokens = Annotated[
    str | None,
    typer.Option(
        metavar="MIN-OPT-MAX",
        help="Text lengths, such as 1-77-308, or 77 alone. Default: up to 1024, the usual as OPT.",
    ),
]
SamplerName = Literal[
    "ddim", "ddpm", "deis", "dpmpp-2m", "dpmpp-2m-karras", "euler", "euler-a", "flow-euler", "heun", "lms", "pndm",
    "unipc",
]  # fmt: skip
"""The names in ``models.SAMPLERS``, which is too heavy to import for ``--help``."""

PresetName = Literal["default", "paper", "paper-dit"]
"""The names of the presets of method dipgo."""

Sampler = Annotated[
    SamplerName | None,
    typer.Option(
        metavar="NAME", help=f"Sampler by name. Default: the model's own. Names: {', '.join(get_args(SamplerName))}."
    ),
]
SamplerOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--sampler-option", metavar="KEY=VALUE", help="Option of the scheduler, as clip_sample=false. May be repeated."
    ),
]
Steps = Annotated[int | None, typer.Option(min=1, help="Steps of the sampler's full run. Default: the model's own.")]
GuidanceLayout = Annotated[
    Literal["none", "concat"] | None,
    typer.Option(help="Layout of classifier-free guidance. Default: the model's own."),
]
GuidanceScale = Annotated[float | None, typer.Option(min=0.0, help="Guidance scale. Default with guidance: 2.")]


def run_options(
    backend: BackendName,
    device: DeviceName | None,
    *,
    threads: int | None = None,
    cuda_graph: bool = False,
    compile_: bool = False,
    gpu_memory: str | None = None,
    trust_engines: bool = False,
) -> RunOptions:
    """RunOptions from the command line, checked before anything is loaded.

    Args:
        backend: ``--backend``.
        device: ``--device``, None for the backend's usual device.
        threads: ``--threads``.
        cuda_graph: ``--cuda-graph``.
        compile_: ``--compile``.
        gpu_memory: ``--gpu-memory``, such as ``8G``.
        trust_engines: ``--trust-engines``.

    Returns:
        The options.

    Raises:
        UsageError: an option of another backend.
        MissingError: engines cannot run on this machine.
    """
    run = RunOptions(
        backend,
        device or "cpu",
        threads,
        cuda_graph,
        "inductor" if compile_ else None,
        None if gpu_memory is None else byte_count(gpu_memory),
        trust_engines,
    )
    if run.on_engines:
        if device == "cpu":
            raise UsageError(f"backend {backend} runs on a GPU, device is cpu: leave one out")
        from dipgo_deploy.trt.target import load_target

        load_target(backend, "run")
    return run


def half_type(fp16: bool, bf16: bool) -> HalfType | None:
    """The half precision that ``--fp16`` or ``--bf16`` asks for. Raises UsageError for both."""
    if fp16 and bf16:
        raise UsageError("--fp16 and --bf16 exclude each other: choose one")
    return "float16" if fp16 else "bfloat16" if bf16 else None


def patterns_of(blocks: str | None) -> tuple[str, ...] | None:
    """The patterns of ``--blocks``. Raises UsageError for an empty pattern."""
    if blocks is None:
        return None
    patterns = tuple(pattern.strip() for pattern in blocks.split(","))
    if not all(patterns):
        raise UsageError(f"--blocks {blocks!r} contains an empty pattern: give dotted paths separated by commas")
    return patterns


def byte_count(text: str) -> int:
    """Parse ``8G``, ``512M``, ``64k`` (powers of 1024) or a plain number of bytes. UsageError for other text."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKMGT]?)(?:i?B)?", text.strip())
    if not match or not float(match[1]):
        raise UsageError(f"{text!r} is not a size: give a number with k, M, G or T, such as 8G")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def architectures(text: str) -> tuple[str, ...]:
    """Parse ``sm86,sm89`` into GPU architectures in lower case. Raises UsageError for an empty name."""
    names = tuple(part.strip().lower() for part in text.split(","))
    if not all(names):
        raise UsageError(f"--gpu {text!r} contains an empty name: give architectures separated by commas, as sm86,sm89")
    return names


def batch_range(text: str) -> BatchRange:
    """Parse ``1-4-8`` (minimum, optimum and maximum images) or ``4`` alone. UsageError for other text."""
    return BatchRange(*_range(text, "--batch", "images", "1-4-8"))


def token_range(text: str | None) -> SizeRange | None:
    """Parse ``1-77-308`` (minimum, usual and maximum tokens) or ``77`` alone. UsageError for other text."""
    if text is None:
        return None
    low, usual, high = _range(text, "--tokens", "text lengths", "1-77-308")
    if not low <= usual <= high:
        raise UsageError(f"--tokens {text} is not in order: give MIN-OPT-MAX, such as 1-77-308")
    return SizeRange(low, usual, high)


def _range(text: str, option: str, what: str, example: str) -> tuple[int, ...]:
    parts = text.split("-")
    if len(parts) not in (1, 3) or not all(part.isdecimal() and int(part) for part in parts):
        raise UsageError(f"{option} {text!r} is not a range of {what}: give MIN-OPT-MAX, such as {example}")
    return tuple(int(part) for part in (parts if len(parts) == 3 else parts * 3))
