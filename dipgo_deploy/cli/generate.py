"""``dipgo-deploy generate``: draw images with a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dipgo_deploy.cli.options import (
    Backend,
    BundleFolder,
    Compiled,
    CudaGraph,
    Device,
    GpuMemory,
    Json,
    OwnModel,
    TrustEngines,
    run_options,
)
from dipgo_deploy.cli.output import emit, result, working
from dipgo_deploy.cli.source import open_bundle
from dipgo_deploy.cli.units import count_text
from dipgo_deploy.core.errors import UsageError

if TYPE_CHECKING:
    from dipgo_deploy.runtime.dropin import StepOptions

_COLUMNS = 16
"""The widest grid, in images; up to there each row is one class or prompt."""

_PER_CLASS = 8

_MOST_SEED = 2**62
"""Every image has a seed of its own, counted from here; PyTorch takes 64 bits."""

_WIDE = 168
"""Pixels to which smaller images of a prompt are enlarged."""


def generate(
    bundle: BundleFolder,
    out: Annotated[Path, typer.Option(help="Picture to write, a grid of all images.")] = Path("grid.png"),
    seed: Annotated[int, typer.Option(min=0, max=_MOST_SEED, help="Seed of the noise.")] = 0,
    classes: Annotated[
        list[int] | None, typer.Option("--class", help="Class of the images; repeat for several; all if left out.")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Text of the images, through the bundle's pipeline; repeat for several.")
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="Text that guidance leads away from.")] = None,
    count: Annotated[int | None, typer.Option(min=1, max=10_000, help="Images per class (8) or prompt (1).")] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0.0, help="Guidance scale; 2, or with --prompt the pipeline's own.")
    ] = None,
    backend: Backend = "onnxruntime",
    device: Device = None,
    cuda_graph: CudaGraph = False,
    compiled: Compiled = False,
    gpu_memory: GpuMemory = None,
    trust_engines: TrustEngines = False,
    own_model: OwnModel = None,
    as_json: Json = False,
) -> None:
    """Generate images with BUNDLE and write them as one picture."""
    if out.suffix != ".png":
        raise UsageError(f"--out {out} does not end in .png: name a picture")
    if prompt and classes:
        raise UsageError("--class and --prompt say both what to draw: give one of them")
    if negative_prompt is not None and not prompt:
        raise UsageError("--negative-prompt goes with --prompt, which is not given: give it, or leave both out")
    if own_model is not None and prompt:
        raise UsageError("--model is for models without a pipeline, --prompt for those that have one: leave one out")
    from dipgo_deploy.core.disk import check_target

    check_target(out)
    how = run_options(backend, device, cuda_graph, compiled, gpu_memory, trust_engines)
    if prompt:
        _draw_prompts(bundle, out, tuple(prompt), negative_prompt, seed, count or 1, guidance, how, as_json)
        return
    from dipgo_deploy.bench.figure import image_grid
    from dipgo_deploy.runtime import GenerateOptions
    from dipgo_deploy.runtime import generate as draw

    each = count or _PER_CLASS
    options = GenerateOptions(seed=seed, classes=tuple(classes or ()), count=each, guidance_scale=guidance, **how)
    with working(f"generating with {bundle}"):
        loaded = open_bundle(bundle, own_model)
        _check_drawable(loaded.manifest.contract.latent_shape, bundle)
        images = draw(loaded, options)
        image_grid(images, out, columns=min(each, _COLUMNS))
    if as_json:
        emit({"images": len(images), "seed": seed, "out": str(out)})
        return
    result(f"{count_text(len(images), 'image')} in {out}")


def _check_drawable(latent_shape: tuple[int, ...], bundle: Path) -> None:
    """UsageError for latents that are no images: refused before they are drawn."""
    if len(latent_shape) != 3 or latent_shape[0] not in (1, 3):
        from dipgo_deploy.cli.contract_view import shape_text
        from dipgo_deploy.core.disk import read_json

        has_pipeline = read_json(bundle / "model_index.json").get("_class_name") != "DiffusionPipeline"
        way = "give --prompt, or call load_pipeline in Python" if has_pipeline else "run a session of it in Python"
        raise UsageError(
            f"this bundle draws latents of shape {shape_text(latent_shape)}, which are no pictures until a pipeline "
            f"decodes them: {way}"
        )


def _step_options(how: dict[str, Any]) -> StepOptions:
    """Where a pipeline's denoiser runs; UsageError for what the pipeline's own loop, step by step, cannot have."""
    from dipgo_deploy.runtime.dropin import StepOptions

    for name, given in {"cuda-graph": how["cuda_graph"], "compile": how["compiler"]}.items():
        if given:
            raise UsageError(f"--{name} is for runs without --prompt: leave one of them out")
    return StepOptions(**{name: how[name] for name in ("backend", "device", "gpu_memory", "trust_engines")})


def _draw_prompts(
    bundle: Path,
    out: Path,
    prompts: tuple[str, ...],
    negative_prompt: str | None,
    seed: int,
    count: int,
    guidance: float | None,
    how: dict[str, Any],
    as_json: bool,
) -> None:
    """Draw through the pipeline, and say where the time went."""
    from dipgo_deploy.bench.figure import image_grid
    from dipgo_deploy.runtime.dropin import PromptOptions, draw_prompts

    options = PromptOptions(prompts, negative_prompt, seed, count, guidance, run=_step_options(how))
    with working(f"generating with {bundle}"):
        drawn = draw_prompts(bundle, options)
        image_grid(drawn.images, out, columns=min(count, _COLUMNS), scale=max(1, _WIDE // drawn.images.shape[-1]))
    seconds = drawn.times.as_dict()
    if as_json:
        emit({"images": len(drawn.images), "seed": seed, "out": str(out), "seconds": seconds})
        return
    result(f"{count_text(len(drawn.images), 'image')} in {out}")
    result(", ".join(f"{part.replace('_', ' ')} {value:.3f} s" for part, value in seconds.items()))
