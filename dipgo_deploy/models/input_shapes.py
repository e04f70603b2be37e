"""Other shapes of a model's inputs: latents of any size within two ranges, and the inputs of a trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.tensors import HEIGHT, WIDTH, SizeRange, TensorSpec
from dipgo_deploy.models.loaded_model import LoadedModel
from dipgo_deploy.models.network_inputs import changed_inputs

__all__ = ["with_inputs", "with_sizes"]


def with_sizes(model: LoadedModel, height: SizeRange, width: SizeRange) -> LoadedModel:
    """The same model for latents of any size within two ranges.

    Args:
        model: the denoiser.
        height: of the latent, in latent pixels. ``opt`` is the size of searches and of costs.
        width: of the latent.

    Returns:
        The model. A range of one value fixes that side.

    Raises:
        UsageError: the class runs at one size, or a range holds sizes that the network does not take.
    """
    fixed = model.with_latent_shape((*model.latent_shape[:-2], height.opt, width.opt))
    free = {name: size for name, size in ((HEIGHT, height), (WIDTH, width)) if not size.is_fixed}
    if not free:
        return fixed
    allowed = model.preset.sides(model.config)
    if isinstance(allowed, str):
        raise UsageError(
            f"{model.class_name} runs at one size, because {allowed}: choose one size, and make a bundle for each size"
        )
    for name, size in free.items():
        if not all(map(allowed.has, (size.min, size.opt, size.max))):
            raise UsageError(f"this {model.class_name} takes {name} {allowed}, got {size}: choose sizes of that kind")
    stepped = {name: replace(size, step=allowed.step) for name, size in free.items()}
    return replace(fixed, ranges={**fixed.ranges, **stepped})


def with_inputs(model: LoadedModel, specs: Sequence[TensorSpec]) -> LoadedModel:
    """The same model with the conditioning inputs that were traced, in their shapes.

    Args:
        model: the denoiser.
        specs: the inputs of a trace, the latent first.

    Returns:
        A copy whose inputs have these names and shapes. Inputs that the config does not ask for have no defaults.
    """
    changed = changed_inputs(model.inputs, specs)
    if not changed:
        return model
    return replace(model, call=replace(model.pipeline_call, recorded={**model.pipeline_call.recorded, **changed}))
