"""The options that several commands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from dipgo_deploy.core.errors import UsageError

__all__ = [
    "Backend",
    "Batch",
    "Blocks",
    "BundleFolder",
    "Dtype",
    "Granularity",
    "GuidanceScale",
    "Json",
    "Layout",
    "Meta",
    "Model",
    "RandomWeights",
    "patterns_of",
]

Json = Annotated[bool, typer.Option("--json", help="End stdout with one JSON document.")]
Model = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="A shipped model, a diffusers folder, or module:attribute.")
]
RandomWeights = Annotated[
    str | None,
    typer.Option(metavar="CONFIG", help="In place of MODEL: an architecture, as sd15, or a config.json."),
]
Dtype = Annotated[Literal["float32", "float16", "bfloat16"], typer.Option(help="Number format of the network.")]
Meta = Annotated[bool, typer.Option("--meta", help="Shapes alone: no weights are loaded, no memory is taken.")]
BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that export wrote.")]
Granularity = Annotated[Literal["stage", "layer", "branch"], typer.Option(help="How finely the model is divided.")]
Blocks = Annotated[str | None, typer.Option(metavar="PATTERN,…", help="Blocks by dotted path instead of a preset.")]
Layout = Annotated[Literal["subnets", "segments"], typer.Option(help="One graph per compute set, or per piece.")]
Backend = Annotated[Literal["onnxruntime", "torch"], typer.Option(help="What runs the graphs.")]
Batch = Annotated[int, typer.Option(min=1, help="Images per call.")]
GuidanceScale = Annotated[
    float | None, typer.Option("--guidance", min=0.0, help="Guidance scale; 2 under guidance if left out.")
]


def patterns_of(blocks: str | None) -> tuple[str, ...] | None:
    """The patterns of a ``--blocks`` option; UsageError for an empty one."""
    if blocks is None:
        return None
    patterns = tuple(pattern.strip() for pattern in blocks.split(","))
    if not all(patterns):
        raise UsageError(f"--blocks {blocks!r} holds an empty pattern: give dotted paths separated by commas")
    return patterns
