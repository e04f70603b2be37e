"""A live diffusers pipeline as a model: its inputs are those of a real call.

1. The pipeline runs with a recorder in place of its denoiser, up to the first step of its scheduler. The denoiser
   itself does not run.
2. The scheduler's sample is the latent. It is found in the denoiser's first argument, times a number. The other
   channels and tokens are conditioning.
3. Every other tensor of the call is an input. Arguments that no graph has an input for are refused by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dipgo_deploy.core.contract import Guidance
from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.program import TIMESTEP
from dipgo_deploy.models.loaded_model import DTYPES, LoadedModel
from dipgo_deploy.models.presets import PRESETS, Input, PipelineCall, read_pipeline_call
from dipgo_deploy.models.presets.inputs import EXTRA, LEADING, REFERENCE
from dipgo_deploy.models.presets.mmdit import positions
from dipgo_deploy.models.presets.pipeline_check import check_pipeline
from dipgo_deploy.models.sources.call_recorder import Recording, record_call
from dipgo_deploy.models.sources.module import model_from_module

__all__ = ["model_from_pipeline"]

_POSITIONS = ("img_ids", "txt_ids")
_NESTED = "added_cond_kwargs"
_JOINED = (EXTRA, LEADING, REFERENCE)


@dataclass(frozen=True)
class _Latent:
    """The latent in the denoiser's first argument.

    Attributes:
        shape: of one image.
        offset: channels before the latent's.
        reference: height and width of a reference image, or None.
    """

    shape: tuple[int, ...]
    offset: int
    reference: tuple[int, int] | None = None

    def part(self, tensor: torch.Tensor) -> torch.Tensor:
        """The latent's part of the denoiser's first argument."""
        if tensor.ndim == 3:
            return tensor[:, : self.shape[1] * self.shape[2] // 4, : 4 * self.shape[0]]
        return tensor[:, self.offset : self.offset + self.shape[0]]


def model_from_pipeline(pipeline: Any, **call: Any) -> LoadedModel:
    """Wrap the denoiser of a pipeline, with the inputs, guidance and steps of a real call.

    Args:
        pipeline: a diffusers pipeline.
        **call: the arguments of the call that schedules are made for: prompt, image, size, number of steps.

    Returns:
        The model. Floats that differ between calls, such as texts and images, are random in a search. Sizes, masks and
        guidance weights are those of the call.

    Raises:
        UsageError: the call fails, or it gives the denoiser what a schedule or a graph has no place for.
        InputError: the pipeline has no supported denoiser.
    """
    component, module = _denoiser(pipeline)
    parts = {part for part, value in pipeline.components.items() if value is not None}
    check_pipeline(type(pipeline).__name__, parts, pipeline.config)
    recording = record_call(pipeline, module, call)
    first, name = recording.calls[0], type(pipeline).__name__
    latent_name = next(iter(first))
    latent = _find_latent(name, first, recording.sample)
    tensors = _tensors(name, module, first)
    rows = len(first[latent_name])
    _check_calls(name, recording, rows)
    guidance = _guidance(name, latent.part(first[latent_name]), tensors)
    folder = Path(str(getattr(pipeline, "name_or_path", "") or ""))
    known = folder if (folder / "model_index.json").is_file() else None
    text = tensors.get("encoder_hidden_states")
    model = model_from_module(
        module,
        dtype=_dtype_name(module),
        folder=known,
        component=component,
        scheduler_config=dict(pipeline.scheduler.config),
        latent_shape=latent.shape,
        text_tokens=None if text is None else text.shape[1],
        guidance=guidance,
        steps=call.get("num_inference_steps"),
        call=_facts(pipeline, known, latent),
    )
    return _with_recorded(model, tensors, latent)


def _denoiser(pipeline: Any) -> tuple[str, nn.Module]:
    for name in ("unet", "transformer"):
        module = getattr(pipeline, name, None)
        if isinstance(module, nn.Module) and type(module).__name__ in PRESETS:
            return name, module
    raise InputError(
        f"{type(pipeline).__name__} has no supported denoiser ({', '.join(PRESETS)}): use another pipeline"
    )


def _find_latent(name: str, arguments: Mapping[str, Any], sample: torch.Tensor | None) -> _Latent:
    """Where the sample of the scheduler is in the denoiser's first argument."""
    assert sample is not None
    given, own = next(iter(arguments.values()))[0].double(), sample[0].double()
    axis, packed = (-1, True) if given.ndim == 2 else (0, False)
    tokens = given[: len(own)] if packed else given
    for offset in range(given.shape[axis] - own.shape[axis] + 1):
        part = tokens.narrow(axis, offset, own.shape[axis])
        if part.shape == own.shape and _is_multiple(part, own):
            break
    else:
        raise UsageError(
            f"the denoiser of {name} does not look at its scheduler's sample times a number, so no schedule fits: use "
            "a pipeline that leaves scaling to its scheduler"
        )
    return _packed_latent(name, arguments, own) if packed else _Latent(tuple(own.shape), offset)


def _is_multiple(part: torch.Tensor, own: torch.Tensor) -> bool:
    scale = float((part * own).sum() / (own * own).sum())
    return scale > 0 and float((part - scale * own).abs().max()) <= 1e-2 * float(part.abs().max())


def _packed_latent(name: str, arguments: Mapping[str, Any], own: torch.Tensor) -> _Latent:
    """The latent of FLUX's tokens. Its size follows from the position ids."""
    ids = arguments["img_ids"].reshape(-1, 3).float().cpu()
    height, width = _size(ids[: len(own)])
    rest = ids[len(own) :]
    reference = _size(rest) if len(rest) else None
    expected = [positions(height, width)] + ([positions(*reference, index=1)] if reference else [])
    texts = arguments["txt_ids"].float().cpu()
    if not (torch.equal(ids, torch.cat(expected)) and not texts.any()):
        raise UsageError(f"{name} gives its tokens positions of its own, which a graph holds as constants: use another")
    return _Latent((own.shape[1] // 4, height, width), 0, reference)


def _size(ids: torch.Tensor) -> tuple[int, int]:
    rows, columns = (int(ids[:, axis].max()) + 1 for axis in (1, 2))
    return 2 * rows, 2 * columns


def _tensors(name: str, module: nn.Module, arguments: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The conditioning tensors of a call by name, without those joined to the latent."""
    defaults = inspect.signature(type(module).forward).parameters
    latent, *others = arguments.items()
    tensors: dict[str, torch.Tensor] = {}
    for argument, value in _flat(dict(others)).items():
        default = defaults[argument].default if argument in defaults else None
        is_empty = isinstance(value, Mapping | list | tuple) and len(value) == 0
        if value is None or is_empty or argument in (TIMESTEP, *_POSITIONS):
            continue
        if isinstance(value, torch.Tensor):
            if len(value) != len(latent[1]):
                raise UsageError(
                    f"{name} gives {argument} {len(value)} rows for {len(latent[1])} latents: use another call"
                )
            tensors[argument] = value.detach().cpu()
        elif value != default:
            raise UsageError(
                f"{name} gives its denoiser {argument}, for which a graph has no input: leave it out of the call"
            )
    return tensors


def _flat(arguments: Mapping[str, Any]) -> dict[str, Any]:
    nested = arguments.get(_NESTED)
    flat = {name: value for name, value in arguments.items() if name != _NESTED}
    return flat | (dict(nested) if isinstance(nested, Mapping) else {})


def _check_calls(name: str, recording: Recording, rows: int) -> None:
    """Refuse a step whose calls differ in rows or arguments, and rows with timesteps of their own."""
    first = recording.calls[0]
    for other in recording.calls[1:]:
        if len(next(iter(other.values()))) != rows or _flat(other).keys() != _flat(first).keys():
            raise UsageError(f"{name} calls its denoiser with different arguments in one step: no schedule holds that")
    times = torch.as_tensor(first[TIMESTEP]).reshape(-1)
    if not bool((times == times[0]).all()):
        raise UsageError(
            f"{name} gives rows or tokens timesteps of their own, a schedule has one: use another pipeline"
        )


def _guidance(name: str, latents: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> Guidance:
    """The layout of rows: how often each image's latent stands there under different conditioning."""
    for copies in (4, 3, 2):
        if _repeats(latents, copies) and not all(_repeats(t, copies) for t in tensors.values()):
            if copies == 2:
                return "concat"
            raise UsageError(
                f"{name} makes {copies} rows an image, a schedule holds one or two: turn its second guidance off, such "
                "as guidance_scale=1 or pag_scale=0"
            )
    return "none"


def _repeats(tensor: torch.Tensor, copies: int) -> bool:
    count, rest = divmod(len(tensor), copies)
    return not rest and all(torch.equal(part, tensor[:count]) for part in tensor.split(count)[1:])


def _facts(pipeline: Any, folder: Path | None, latent: _Latent) -> PipelineCall:
    name = type(pipeline).__name__
    encoder = getattr(pipeline, "text_encoder_2", None)
    made = PipelineCall.of(
        name,
        pooled_width=getattr(getattr(encoder, "config", None), "projection_dim", None),
        has_aesthetic_score=bool(pipeline.config.get("requires_aesthetics_score")),
    )
    known = made if folder is None else read_pipeline_call(folder)
    return replace(known, pipeline=name, image_first=latent.offset > 0, reference=latent.reference is not None)


def _with_recorded(model: LoadedModel, tensors: Mapping[str, torch.Tensor], latent: _Latent) -> LoadedModel:
    """The model with the inputs of the call where they differ from those that its config asks for."""
    changed: dict[str, Input | None] = {name: None for name in model.inputs if name not in {*tensors, *_JOINED}}
    if latent.reference not in (None, latent.shape[1:]):
        assert latent.reference is not None
        changed[REFERENCE] = Input((latent.shape[0], *latent.reference))
    for name, tensor in tensors.items():
        own = model.inputs.get(name)
        recorded = _recorded(own, tensor, model.guidance)
        if own is None or own.shape != recorded.shape or not _same_rows(own, recorded):
            changed[name] = recorded
    assert model.call is not None
    return replace(model, call=replace(model.call, recorded={**model.call.recorded, **changed}))


def _recorded(own: Input | None, tensor: torch.Tensor, guidance: Guidance | None) -> Input:
    """An input of the call. Whole numbers, masks and known constants keep their values, other floats do not."""
    is_mask = tensor.ndim == 2 and bool(((tensor == 0) | (tensor == 1)).all())
    has_value = own is not None and own.value is not None
    if own is not None and own.classes is not None:
        return own
    if not has_value and (tensor.is_floating_point() and not (own is None and is_mask)):
        return Input(tuple(tensor.shape[1:]))
    known = torch.as_tensor(own.value).dtype if own is not None and has_value else None
    rows = tensor.to(known or (torch.float32 if tensor.is_floating_point() else tensor.dtype))
    return Input.constant(rows[-1].numpy(), rows[0].numpy() if guidance == "concat" else None)


def _same_rows(own: Input, recorded: Input) -> bool:
    """Whether two inputs have the same default rows."""
    label = torch.zeros(1, dtype=torch.int64)
    return all(map(torch.equal, own.rows(label), recorded.rows(label)))


def _dtype_name(module: nn.Module) -> str:
    dtype = next(module.parameters()).dtype
    name = next((name for name, known in DTYPES.items() if known == dtype), None)
    if name is None:
        raise InputError(f"the denoiser has dtype {dtype}, which no graph has: load it as {', '.join(DTYPES)}")
    return name
