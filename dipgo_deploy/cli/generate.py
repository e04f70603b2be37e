"""``dipgo-deploy generate``: draw images with a bundle, as a grid, as single files or as latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dipgo_deploy.cli.image_output import Drawn, ImageOutput, image_output
from dipgo_deploy.cli.latent_sizes import free_sizes
from dipgo_deploy.cli.options import (
    Backend,
    BundleFolder,
    Compile,
    CudaGraph,
    Device,
    GpuMemory,
    Json,
    OneSize,
    OwnModel,
    TrustEngines,
    TrustWeights,
    run_options,
)
from dipgo_deploy.cli.replacing import Force
from dipgo_deploy.cli.source import open_bundle
from dipgo_deploy.cli.terminal import emit, result, working
from dipgo_deploy.cli.units import count_text
from dipgo_deploy.core.errors import UsageError

if TYPE_CHECKING:
    from dipgo_deploy.core.run_options import RunOptions

_PER_CLASS = 8

_MOST_SEED = 2**62
"""Largest first seed. Each further image adds 1, and PyTorch accepts 64-bit seeds."""

_ENLARGEMENT = 6
"""Pixels of the grid per pixel of an image of a class."""

_WIDE = 168
"""Width in pixels to which smaller images of a prompt are enlarged."""


def generate(
    bundle: BundleFolder,
    out: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            help="A labelled grid (.png, .jpg), all latents (.npy), or a file for each image: a folder (FOLDER/), or a "
            "pattern such as images/{index:03d}-seed-{seed}.jpg.",
        ),
    ] = "grid.png",
    seed: Annotated[
        int, typer.Option(min=0, max=_MOST_SEED, help="Seed of the first image. Each further image adds 1.")
    ] = 0,
    classes: Annotated[
        list[int] | None, typer.Option("--class", help="Class of the images. May be repeated. Default: all classes.")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Text of the images, through the bundle's pipeline. May be repeated.")
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="Text that guidance steers away from.")] = None,
    count: Annotated[int | None, typer.Option(min=1, max=10_000, help="Images per class (8) or prompt (1).")] = None,
    size: OneSize = None,
    guidance_scale: Annotated[
        float | None, typer.Option(min=0.0, help="Guidance scale. Default: 2, or with --prompt the pipeline's own.")
    ] = None,
    backend: Backend = "onnxruntime",
    device: Device = None,
    cuda_graph: CudaGraph = False,
    compile_: Compile = False,
    gpu_memory: GpuMemory = None,
    trust_engines: TrustEngines = False,
    trust_weights: TrustWeights = False,
    own_model: OwnModel = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Generate images with BUNDLE: a labelled grid, a file for each image, or latents."""
    if prompt and classes:
        raise UsageError("--class and --prompt both say what to draw: give one of them")
    if negative_prompt is not None and not prompt:
        raise UsageError("--negative-prompt needs --prompt: give it, or leave both out")
    if own_model is not None and prompt:
        raise UsageError("--model is for models without a pipeline, --prompt for models with a pipeline: leave one out")
    sizes = free_sizes(size)
    output = image_output(out, by_prompt=bool(prompt))
    output.check(force)
    run = run_options(
        backend, device, cuda_graph=cuda_graph, compile_=compile_, gpu_memory=gpu_memory, trust_engines=trust_engines
    )
    if prompt:
        _draw_prompts(
            bundle, output, tuple(prompt), negative_prompt, seed, count or 1, guidance_scale, run, trust_weights, force,
            as_json, sizes,
        )  # fmt: skip
        return
    from dipgo_deploy.runtime import GenerateOptions
    from dipgo_deploy.runtime import generate as draw

    options = GenerateOptions(seed, tuple(classes or ()), count or _PER_CLASS, guidance_scale, run=run, sizes=sizes)
    with working(f"generating with {bundle}"):
        loaded = open_bundle(bundle, own_model, trust_weights=trust_weights)
        if not output.is_array:
            _check_drawable(loaded.manifest.contract.latent_shape, bundle)
        _check_inputs([spec.name for spec in loaded.blocks.inputs], bundle)
        num_classes = loaded.model.num_classes
        seeds, labels = options.images_of(num_classes)
        drawn = Drawn(seeds, labels if num_classes else [None] * len(seeds))
        output.check_files(drawn, force)
        files = output.write(draw(loaded, options), drawn, columns=options.count, scale=_ENLARGEMENT)
    _print_result(output, drawn, files, as_json, {})


def _print_result(
    output: ImageOutput, drawn: Drawn, files: Sequence[Path], as_json: bool, seconds: Mapping[str, float]
) -> None:
    """Print how many images are where, and where the time of a pipeline went."""
    count = len(drawn.seeds)
    if as_json:
        written = {"out": output.text, "files": [str(path) for path in files], "seeds": list(drawn.seeds)}
        emit({"images": count, "seed": drawn.seeds[0], **written, **({"seconds": seconds} if seconds else {})})
        return
    what = f"latents of {count_text(count, 'image')}" if output.is_array else count_text(count, "image")
    result(f"{what} in {output.text}")
    if seconds:
        result(", ".join(f"{part.replace('_', ' ')} {value:.3f} s" for part, value in seconds.items()))


def _check_drawable(latent_shape: tuple[int, ...], bundle: Path) -> None:
    """Raise UsageError for latents that are not images, before anything is generated."""
    if len(latent_shape) != 3 or latent_shape[0] not in (1, 3):
        from dipgo_deploy.cli.program_view import shape_text
        from dipgo_deploy.core.disk import read_json

        has_pipeline = read_json(bundle / "model_index.json").get("_class_name") != "DiffusionPipeline"
        way = "give --prompt, or name an array of latents, such as --out latents.npy"
        way = way if has_pipeline else "name an array of latents, such as --out latents.npy"
        raise UsageError(
            f"this bundle makes latents of shape {shape_text(latent_shape)}, which a pipeline has to decode: {way}"
        )


def _check_inputs(names: list[str], bundle: Path) -> None:
    """Raise UsageError for a network that looks at an image of the user's, before anything is generated."""
    from dipgo_deploy.models.presets.inputs import EXTRA, LEADING, REFERENCE

    if images := sorted({*names} & {EXTRA, LEADING, REFERENCE}):
        raise UsageError(
            f"{bundle} also looks at {images[0]}, an image of yours, which generate does not take: call load_pipeline "
            "in Python, or run a session"
        )


def _draw_prompts(
    bundle: Path,
    output: ImageOutput,
    prompts: tuple[str, ...],
    negative_prompt: str | None,
    seed: int,
    count: int,
    guidance_scale: float | None,
    run: RunOptions,
    trust_weights: bool,
    force: bool,
    as_json: bool,
    sizes: Mapping[str, int],
) -> None:
    """Generate through the pipeline, and print where the time went."""
    from dipgo_deploy.pipeline import PromptOptions, draw_prompts

    for option, value in {"--cuda-graph": run.cuda_graph, "--compile": run.compiler}.items():
        if value:
            raise UsageError(f"{option} is for runs without --prompt: leave one of them out")
    options = PromptOptions(
        prompts, negative_prompt, seed, count, guidance_scale, run=run, latents=output.is_array,
        trust_weights=trust_weights, sizes=sizes,
    )  # fmt: skip
    subjects = [number for number in range(len(prompts)) for _ in range(count)]
    drawn = Drawn([seed + index for index in range(len(subjects))], subjects, prompts)
    output.check_files(drawn, force)
    with working(f"generating with {bundle}"):
        images = draw_prompts(bundle, options)
        scale = max(1, _WIDE // images.images.shape[-1])
        files = output.write(images.images, drawn, columns=count, scale=scale)
    _print_result(output, drawn, files, as_json, images.times.as_dict())
