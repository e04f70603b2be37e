"""``dipgo-deploy generate``: draw images with a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dipgo_deploy.cli.options import (
    Backend,
    BundleFolder,
    Compiled,
    CudaGraph,
    Device,
    GpuMemory,
    GuidanceScale,
    Json,
    TrustEngines,
    run_options,
)
from dipgo_deploy.cli.output import emit, result, working
from dipgo_deploy.core.errors import UsageError

_COLUMNS = 16
"""The widest grid, in images; up to there each row is one class."""


def generate(
    bundle: BundleFolder,
    out: Annotated[Path, typer.Option(help="Picture to write, a grid of all images.")] = Path("grid.png"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    classes: Annotated[
        list[int] | None, typer.Option("--class", help="Class of the images; repeat for several; all if left out.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Images per class.")] = 8,
    guidance: GuidanceScale = None,
    backend: Backend = "onnxruntime",
    device: Device = None,
    cuda_graph: CudaGraph = False,
    compiled: Compiled = False,
    gpu_memory: GpuMemory = None,
    trust_engines: TrustEngines = False,
    as_json: Json = False,
) -> None:
    """Generate images with BUNDLE and write them as one picture."""
    if out.suffix != ".png":
        raise UsageError(f"--out {out} does not end in .png: name a picture")
    from dipgo_deploy.core.files import check_target

    check_target(out)
    how = run_options(backend, device, cuda_graph, compiled, gpu_memory, trust_engines)
    from dipgo_deploy.bench.pictures import image_grid
    from dipgo_deploy.runtime import GenerateOptions, load_bundle
    from dipgo_deploy.runtime import generate as draw

    options = GenerateOptions(seed=seed, classes=tuple(classes or ()), count=count, guidance_scale=guidance, **how)
    with working(f"generating with {bundle}"):
        images = draw(load_bundle(bundle), options)
        image_grid(images, out, columns=min(count, _COLUMNS))
    if as_json:
        emit({"images": len(images), "seed": seed, "out": str(out)})
        return
    result(f"{len(images)} images in {out}")
