"""Load the diffusers pipeline of a bundle: its components, the deployed denoiser and the scheduler of the contract.

A bundle's folder is untrusted input. Components must be classes of diffusers, of one of its pipelines (such as the
safety checker of ``stable_diffusion``) or of transformers, weights are read from
safetensors only, and nothing is downloaded.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from dipgo_deploy.bundle.load import load_bundle
from dipgo_deploy.core.bundle import BUNDLE_FILE
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.disk import path_inside, read_json
from dipgo_deploy.core.errors import DipgoError, InputError, MissingError, first_line
from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.models.contracts import CONCAT_GUIDANCE_CLASSES
from dipgo_deploy.models.other_denoisers import other_denoisers_note
from dipgo_deploy.models.schedulers import scheduler_from_spec
from dipgo_deploy.models.sources.weight_files import only_variant
from dipgo_deploy.models.suppress_logging import suppress_diffusers_logging, suppress_transformers_logging
from dipgo_deploy.pipeline.denoiser import DeployedDenoiser

__all__ = ["call_arguments", "load_pipeline"]

_INDEX = "model_index.json"
_LIBRARIES = ("diffusers", "transformers")
_DEPLOYED = [DeployedDenoiser.__module__, DeployedDenoiser.__name__]
"""The entry that a pipeline's ``save_pretrained`` writes for a deployed denoiser."""

_SCALE_FACTORS = ("vae_scale_factor", "vae_scale_factor_spatial", "movq_scale_factor")
"""Attributes of pipelines that hold the pixels of one latent pixel."""

_SETTINGS = (bool, int, float, str, type(None))


def load_pipeline(folder: str | Path, *, fallback: bool = False, trust_weights: bool = False, **options: Any) -> Any:
    """Load the pipeline of a bundle folder, or a pipeline that was saved with a deployed denoiser.

    Call the pipeline as usual, with the contract's steps, size and guidance. ``call_arguments`` gives these arguments.

    Args:
        folder: the bundle, or the saved pipeline.
        fallback: let the PyTorch model answer calls outside the contract.
        trust_weights: check large files of the bundle by size only.
        **options: fields of RunOptions for the denoiser. Other arguments go to ``DiffusionPipeline.from_pretrained``,
            such as ``torch_dtype`` or components that replace the folder's own.

    Returns:
        A pipeline of the class that the folder names. A warning names its other denoisers, which stay in PyTorch.

    Raises:
        InputError: the folder holds no complete pipeline, or a part that is not of diffusers or transformers.
        MissingError: transformers is needed but not installed.
    """
    from diffusers import DiffusionPipeline  # noqa: TID251 - loads the components around the denoiser

    home = Path(folder)
    index = _checked_index(home)
    name, denoiser_folder = _find_denoiser(home, index)
    run = {field.name: options.pop(field.name) for field in fields(RunOptions) if field.name in options}
    replaced = [part for part in options if part in index]
    bundle = load_bundle(denoiser_folder, trust_weights=trust_weights, replaced=replaced)
    denoiser = DeployedDenoiser.from_bundle(bundle, fallback=fallback, **run)
    sampler = denoiser.bundle.contract.sampler
    # diffusers reports a part that the index leaves empty as missing, unless it is passed as None.
    absent = {part: None for part, entry in index.items() if entry == [None, None]}
    parts = {**absent, name: denoiser, "scheduler": scheduler_from_spec(sampler), **options}
    _check_complete(home, index, parts)
    parts.setdefault("variant", _variant(home, index, parts))
    try:
        with suppress_diffusers_logging(), suppress_transformers_logging():
            pipeline = DiffusionPipeline.from_pretrained(home, local_files_only=True, use_safetensors=True, **parts)
    except DipgoError:
        raise
    except Exception as error:
        line = first_line(error)
        raise InputError(f"{home} cannot be loaded as {index['_class_name']} ({line}): restore its files") from None
    # Set again: Stable Diffusion pipelines change old scheduler configs in their constructor, which moves timesteps.
    pipeline.scheduler = scheduler_from_spec(sampler)
    # Set again: diffusers ignores a denoiser that is passed where it is an optional argument (Wan).
    setattr(pipeline, name, denoiser)
    denoiser.watch(pipeline)
    present = {part: entry for part, entry in index.items() if pipeline.components.get(part, entry) is not None}
    if note := other_denoisers_note(present, name):
        warnings.warn(note, stacklevel=2)
    return pipeline


def call_arguments(
    pipeline: Any, contract: Contract, sizes: Mapping[str, int] = MappingProxyType({})
) -> dict[str, Any]:
    """The arguments with which a call of a pipeline fits a contract.

    Args:
        pipeline: a diffusers pipeline.
        contract: of the bundle.
        sizes: height and width of the latent, where the contract has a range. The usual size by default.

    Returns:
        Steps, size and frames. Guidance is turned off for a contract without guidance, because pipelines turn it on by
        default, unless the denoiser takes its weight as an input. Binning, which would change the size, is turned off.
    """
    parameters = inspect.signature(type(pipeline).__call__).parameters
    arguments: dict[str, Any] = {"num_inference_steps": contract.sampler.steps}
    if {"height", "width"} <= parameters.keys():
        # A pipeline without a VAE works on pixels.
        scale = next((factor for name in _SCALE_FACTORS if (factor := getattr(pipeline, name, None))), 1)
        height, width = contract.latent_at(sizes)[-2:]
        arguments |= {"height": height * scale, "width": width * scale}
    if "use_resolution_binning" in parameters:
        arguments["use_resolution_binning"] = False
    if len(contract.latent_shape) > 3:
        arguments["num_frames"] = (contract.latent_shape[1] - 1) * pipeline.vae_scale_factor_temporal + 1
    is_plain = contract.guidance == "none" and contract.model_class in CONCAT_GUIDANCE_CLASSES
    if is_plain and "guidance_scale" in parameters and not _has_embedded_guidance(pipeline):
        arguments["guidance_scale"] = 1.0
    # Perturbed-attention guidance would add a third row to every image.
    if "pag_scale" in parameters:
        arguments["pag_scale"] = 0.0
    return arguments


def _has_embedded_guidance(pipeline: Any) -> bool:
    """Whether the denoiser takes the guidance weight as an input (latent consistency models)."""
    denoiser = getattr(pipeline, "unet", None)
    return denoiser is not None and denoiser.config.get("time_cond_proj_dim") is not None


def _checked_index(home: Path) -> Mapping[str, Any]:
    """``model_index.json`` of a pipeline. Its class and its parts are of known libraries."""
    index = read_json(home / _INDEX)
    class_name = index.get("_class_name")
    if not isinstance(class_name, str):
        raise InputError(f"{home / _INDEX} names code of its own as _class_name: use a pipeline of diffusers")
    if class_name == "DiffusionPipeline":
        raise InputError(
            f"{home} holds a denoiser without a pipeline: set DeployedDenoiser.from_bundle(...) in the pipeline that "
            "it belongs to, or export the model from its whole pipeline folder"
        )
    for name, entry in index.items():
        is_part = isinstance(entry, list) and len(entry) == 2
        if not name.startswith("_") and not (_is_known(entry) if is_part else isinstance(entry, _SETTINGS)):
            raise InputError(f"{home / _INDEX} names {entry} as {name}: a part must be of {' or '.join(_LIBRARIES)}")
    return index


def _is_known(entry: list[Any]) -> bool:
    if entry in ([None, None], _DEPLOYED):
        return True
    library, class_name = entry
    return isinstance(class_name, str) and (library in _LIBRARIES or _is_pipeline_module(library))


def _is_pipeline_module(library: object) -> bool:
    """Whether diffusers has pipelines of that name, whose parts are written as ``["stable_diffusion", ...]``."""
    from diffusers import pipelines  # noqa: TID251 - parts that live beside their pipeline

    module = getattr(pipelines, library, None) if isinstance(library, str) else None
    return isinstance(module, ModuleType) and module.__name__ == f"{pipelines.__name__}.{library}"


def _find_denoiser(home: Path, index: Mapping[str, Any]) -> tuple[str, Path]:
    """The name of the denoiser in the pipeline, and the folder of its bundle."""
    name = next((name for name in ("unet", "transformer") if name in index), None)
    if name is None:
        raise InputError(f"{home / _INDEX} names neither unet nor transformer: use a diffusion pipeline")
    if (home / BUNDLE_FILE).is_file():
        return name, home
    if index[name] != _DEPLOYED:
        raise InputError(f"{home} has no {BUNDLE_FILE} and no deployed denoiser: use a bundle that export wrote")
    return name, path_inside(home, name)


def _variant(home: Path, index: Mapping[str, Any], passed: Mapping[str, Any]) -> str | None:
    """The weights variant (``fp16``) of the first part that has no plain weights, None if all parts have plain weights.

    diffusers loads plain weights for parts without that variant.
    """
    names = [name for name, entry in index.items() if isinstance(entry, list) and name not in passed]
    return next(filter(None, (only_variant(path_inside(home, name)) for name in names)), None)


def _check_complete(home: Path, index: Mapping[str, Any], passed: Mapping[str, Any]) -> None:
    for name, entry in index.items():
        if isinstance(entry, list) and entry[0] is not None and name not in passed:
            if not path_inside(home, name).is_dir():
                raise InputError(f"{home} has no {name}, which its pipeline needs: pass {name}=..., or re-export")
            if entry[0] == "transformers" and find_spec("transformers") is None:
                raise MissingError(f"{name} needs transformers, which is not installed: pip install transformers")
