"""The diffusers pipeline of a bundle: its own components, the denoiser deployed, the scheduler of the contract.

A bundle's folder is no more trusted than its graphs: components come from diffusers and transformers alone, from
safetensors, and nothing is downloaded.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dipgo_deploy.bundle.load import load_bundle
from dipgo_deploy.core.bundle import BUNDLE_FILE
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.disk import path_inside, read_json
from dipgo_deploy.core.errors import DipgoError, InputError, MissingError, first_line
from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.models.quiet import quiet_diffusers, quiet_transformers
from dipgo_deploy.models.samplers import scheduler_from_spec
from dipgo_deploy.models.usual_run import DOUBLING
from dipgo_deploy.models.weight_files import only_variant
from dipgo_deploy.pipeline.denoiser import DeployedDenoiser

__all__ = ["call_arguments", "load_pipeline"]

_INDEX = "model_index.json"
_LIBRARIES = ("diffusers", "transformers")
_OURS = [DeployedDenoiser.__module__, DeployedDenoiser.__name__]
"""How ``save_pretrained`` of a pipeline records a deployed denoiser."""

_SETTINGS = (bool, int, float, str, type(None))


def load_pipeline(folder: str | Path, *, fallback: bool = False, **given: Any) -> Any:
    """The pipeline of a bundle folder, or of one that ``pipe.save_pretrained`` wrote with a deployed denoiser in it.

    Call it as ever, with ``call_arguments`` or what the contract says: its steps, size and guidance. The fields of
    RunOptions (``backend``, ``device``, …) say where the graphs run; what else is given goes to
    ``DiffusionPipeline.from_pretrained``: ``torch_dtype``, or components that the folder lacks.

    Raises InputError where the folder holds no whole pipeline, or one with parts that are not of diffusers or
    transformers; MissingError where transformers is wanted and absent.
    """
    from diffusers import DiffusionPipeline  # noqa: TID251 - loads the components around the denoiser

    home = Path(folder)
    index = _checked_index(home)
    name, place = _denoiser(home, index)
    options = {field.name: given.pop(field.name) for field in fields(RunOptions) if field.name in given}
    denoiser = DeployedDenoiser.from_bundle(load_bundle(place), fallback=fallback, **options)
    sampler = denoiser.bundle.manifest.contract.sampler
    # diffusers misses parts that are absent, unless it is told so.
    absent = {part: None for part, entry in index.items() if entry == [None, None]}
    parts = {**absent, name: denoiser, "scheduler": scheduler_from_spec(sampler), **given}
    _check_whole(home, index, parts)
    parts.setdefault("variant", _variant(home, index, parts))
    try:
        with quiet_diffusers(), quiet_transformers():
            pipeline = DiffusionPipeline.from_pretrained(home, local_files_only=True, use_safetensors=True, **parts)
    except DipgoError:
        raise
    except Exception as error:
        line = first_line(error)
        raise InputError(f"{home} cannot be loaded as {index['_class_name']} ({line}): restore its files") from None
    # Set again: pipelines of Stable Diffusion change old configs when they are built, and timesteps with them.
    pipeline.scheduler = scheduler_from_spec(sampler)
    # And where a denoiser is an optional argument (Wan), diffusers leaves the one that it is given aside.
    setattr(pipeline, name, denoiser)
    denoiser.watch(pipeline)
    return pipeline


def call_arguments(pipeline: Any, contract: Contract) -> dict[str, Any]:
    """The arguments with which a call of ``pipeline`` fits a contract: steps, size, and no guidance where it has none.

    Guidance by concatenated rows is every such pipeline's default.
    """
    taken = inspect.signature(type(pipeline).__call__).parameters
    arguments: dict[str, Any] = {"num_inference_steps": contract.sampler.steps}
    if {"height", "width"} <= taken.keys():
        scale = getattr(pipeline, "vae_scale_factor", None) or pipeline.vae_scale_factor_spatial
        arguments |= {"height": contract.latent_shape[-2] * scale, "width": contract.latent_shape[-1] * scale}
    if len(contract.latent_shape) > 3:
        arguments["num_frames"] = (contract.latent_shape[1] - 1) * pipeline.vae_scale_factor_temporal + 1
    if contract.guidance == "none" and contract.model_class in DOUBLING:
        arguments["guidance_scale"] = 1.0
    return arguments


def _checked_index(home: Path) -> Mapping[str, Any]:
    """``model_index.json`` of a pipeline whose class and parts are known."""
    index = read_json(home / _INDEX)
    class_name = index.get("_class_name")
    if not isinstance(class_name, str):
        raise InputError(f"{home / _INDEX} names code of its own as _class_name: give a pipeline of diffusers")
    if class_name == "DiffusionPipeline":
        raise InputError(
            f"{home} holds a denoiser and no pipeline: put DeployedDenoiser.from_bundle(…) into the pipeline that it "
            "belongs to, or export the model from its whole pipeline folder"
        )
    for name, entry in index.items():
        is_part = isinstance(entry, list) and len(entry) == 2
        if not name.startswith("_") and not (_is_known(entry) if is_part else isinstance(entry, _SETTINGS)):
            raise InputError(f"{home / _INDEX} names {entry} as {name}, a part of {' or '.join(_LIBRARIES)} is wanted")
    return index


def _is_known(entry: list[Any]) -> bool:
    return entry in ([None, None], _OURS) or (entry[0] in _LIBRARIES and isinstance(entry[1], str))


def _denoiser(home: Path, index: Mapping[str, Any]) -> tuple[str, Path]:
    """Name of the denoiser in the pipeline, and the bundle that it is."""
    name = next((name for name in ("unet", "transformer") if name in index), None)
    if name is None:
        raise InputError(f"{home / _INDEX} names neither unet nor transformer: give a diffusion pipeline")
    if (home / BUNDLE_FILE).is_file():
        return name, home
    if index[name] != _OURS:
        raise InputError(f"{home} has no {BUNDLE_FILE} and no deployed denoiser: give a bundle that export wrote")
    return name, path_inside(home, name)


def _variant(home: Path, index: Mapping[str, Any], given: Mapping[str, Any]) -> str | None:
    """The variant of the first part that has no plain weights; diffusers takes plain ones where others have no such."""
    names = [name for name, entry in index.items() if isinstance(entry, list) and name not in given]
    return next(filter(None, (only_variant(path_inside(home, name)) for name in names)), None)


def _check_whole(home: Path, index: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    for name, entry in index.items():
        if isinstance(entry, list) and entry[0] is not None and name not in given:
            if not path_inside(home, name).is_dir():
                raise InputError(f"{home} has no {name}, which its pipeline is made of: pass {name}=…, or export anew")
            if entry[0] == "transformers":
                _check_transformers(name)


def _check_transformers(name: str) -> None:
    if find_spec("transformers") is None:
        raise MissingError(f"{name} needs transformers, which is not installed: pip install transformers")
