"""A pruner on disk: its tensors and the optimiser's as safetensors, and in the header what they were trained for.

The file is written after every few iterations, whole or not at all. Training continues from the file as if it had never
stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from dipgo_deploy.core.blocks import Kind
from dipgo_deploy.core.contract import Contract, check_same_contract
from dipgo_deploy.core.disk import write_atomic
from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.file_kind import file_kind
from dipgo_deploy.core.files import FORMAT_VERSION
from dipgo_deploy.search.dipgo.options import DipgoOptions
from dipgo_deploy.search.dipgo.pruner import Pruner, PrunerShape
from dipgo_deploy.search.dipgo.training import Training, scores_of
from dipgo_deploy.search.options import SearchOptions

__all__ = [
    "PrunerRecord",
    "is_pruner",
    "load_training",
    "options_of_trained",
    "read_record",
    "read_scores",
    "save_training",
    "shipped_pruner",
]

_FORMAT = "pruner"
_SHIPPED = Path(__file__).parents[1] / "shipped"

_NOT_RECORDED = ("order", "pruner", "from_pruner")
"""Options of one search, not of the pruner: they are not written."""

_FREE = (*_NOT_RECORDED, "checkpoint", "polish")
"""Options that training does not depend on: they may differ from the file's."""

_MOVED = {"seed": "seed", "classes": "classes", "prompts": "prompts", "guidance_scale": "guidance_scale",
          "cost_table": "latency", "polish_images": "images"}  # fmt: skip
"""Options of older files that are now fields of the record, under the second name."""


@dataclass(frozen=True)
class PrunerRecord:
    """What a pruner was trained for, and how far.

    Attributes:
        contract, granularity, kind, blocks: the search that the pruner belongs to.
        options: options of the training.
        done: finished iterations.
        search_cost: full trajectories of one image so far.
        seconds: training time so far.
        seed, classes, prompts, guidance_scale, images: as in SearchOptions.
        latency: digest of the latency table in which costs are counted. "" for MACs.
    """

    contract: Contract
    granularity: str
    kind: Kind
    blocks: tuple[str, ...]
    options: DipgoOptions
    done: int
    search_cost: float
    seconds: float
    seed: int = 0
    classes: tuple[int, ...] = ()
    prompts: tuple[str, ...] = ()
    guidance_scale: float | None = None
    latency: str = ""
    images: int | None = None

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)


def save_training(path: Path, training: Training) -> None:
    """Write the current state of ``training``. Raises InputError if the file cannot be written."""
    text, tensors = _text_of(_record_of(training)), training.state()
    write_atomic(path, save(tensors, metadata=_header(text, tensors)))


def shipped_pruner(model: str) -> Path:
    """The unfinished pruner that ships for a reference model (its stages, DDIM with 50 steps, no guidance)."""
    path = _SHIPPED / f"{model}.pruner"
    if not path.is_file():
        raise InputError(f"no pruner ships for {model}: train one with method dipgo")
    return path


def is_pruner(path: Path) -> bool:
    """Whether a safetensors file says that it is a pruner. Raises InputError for a damaged file."""
    return _read(path, only_header=True)[0].get("format") == _FORMAT


def read_record(path: Path) -> PrunerRecord:
    """The header of a pruner's file. InputError where the file is not a pruner, is damaged, or is newer than this."""
    return _record_from(path, _read(path, only_header=True)[0])


def read_scores(path: Path) -> np.ndarray:
    """Probabilities to keep, (steps, blocks), of the pruner in ``path``, as float64. Raises InputError as a load."""
    header, tensors = _checked(path)
    record = _record_from(path, header)
    options, steps = record.options, record.contract.sampler.calls
    pruner = Pruner(PrunerShape(steps, len(record.blocks), options.width, options.hidden, options.encoder))
    pruner.load_state_dict({name[7:]: tensor for name, tensor in tensors.items() if name.startswith("pruner.")})
    return scores_of(pruner)


def options_of_trained(options: SearchOptions, path: Path) -> SearchOptions:
    """Complete the options of a search with the options of the trained pruner in ``path``.

    Args:
        options: options of the search. Ratio, order, polish and latency table are kept.
        path: the pruner's file.

    Returns:
        Options that continue the pruner, whose training is complete.

    Raises:
        InputError: the file is not a pruner, or its training is not complete.
    """
    record, settings = read_record(path), options.settings_as(DipgoOptions)
    if record.done < record.options.iterations:
        raise InputError(
            f"{path} stopped after {record.done} of {record.options.iterations} iterations: finish it with pruner"
        )
    return replace(
        options,
        seed=record.seed,
        classes=record.classes,
        prompts=record.prompts,
        guidance_scale=record.guidance_scale,
        images=options.images or record.images,
        settings=replace(record.options, polish=settings.polish_budget, order=settings.order, pruner=path),
    )


def load_training(path: Path, training: Training) -> None:
    """Restore ``training`` to the state in the file.

    Args:
        path: the pruner's file.
        training: a training of the same search.

    Raises:
        InputError: the file is damaged, or was made for another model, contract or blocks, or with other options.
            Training on would be neither the one search nor the other.
    """
    header, tensors = _read(path)
    record, own = _record_from(path, header), _record_of(training)
    check_same_contract(own.contract, record.contract, str(path))
    for name in ("granularity", "kind", "blocks"):
        ours, theirs = getattr(own, name), getattr(record, name)
        if ours != theirs:
            raise InputError(f"{path} was trained for {name} {theirs}, not for {ours}: name another file")
    _check_options(path, record, own)
    if header.get("sha256") != _digest(header.get("record", ""), tensors):
        raise InputError(f"{path} is damaged (it differs from its own sha256): train the pruner again")
    training.restore(tensors, record.done, record.search_cost, record.seconds)
    if not np.isfinite(training.scores()).all():
        raise InputError(f"{path} holds scores that are not finite: train the pruner again")


def _check_options(path: Path, record: PrunerRecord, own: PrunerRecord) -> None:
    """Refuse a pruner that was trained with different options."""
    names = [each.name for each in fields(DipgoOptions) if each.name not in _FREE]
    pairs = [(name, getattr(record.options, name), getattr(own.options, name)) for name in names]
    shared = ("seed", "classes", "prompts", "guidance_scale", "latency")
    pairs += [(name, getattr(record, name), getattr(own, name)) for name in shared]
    for name, theirs, ours in pairs:
        if theirs != ours:
            raise InputError(
                f"{path} was trained with another {name} ({theirs}, not {ours}): give the same options, or name "
                "another file"
            )


def _record_of(training: Training) -> PrunerRecord:
    problem = training.problem
    options, table = problem.options, problem.options.latency
    return PrunerRecord(
        problem.contract, problem.graph.granularity, options.kind, problem.graph.block_names,
        replace(training.options, pruner=None), training.done, training.search_cost, training.seconds,
        options.seed, options.classes, options.prompts, options.guidance_scale, table.digest if table else "",
        options.images,
    )  # fmt: skip


def _text_of(record: PrunerRecord) -> str:
    document = TypeAdapter(PrunerRecord).dump_python(record, mode="json")
    for name in _NOT_RECORDED:
        del document["options"][name]
    return json.dumps(document, separators=(",", ":"), allow_nan=False)


def _header(text: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    return {
        "format": _FORMAT,
        "format_version": FORMAT_VERSION,
        "record": text,
        "sha256": _digest(text, tensors),
    }


def _record_from(path: Path, header: Mapping[str, str]) -> PrunerRecord:
    if header.get("format") != _FORMAT:
        raise InputError(f"{path} is not a pruner's file: name a file that method dipgo wrote")
    version = header.get("format_version", "0")
    if version.split(".")[0] != FORMAT_VERSION.split(".")[0]:
        raise InputError(f"{path} has format version {version}, this program reads {FORMAT_VERSION}: update it")
    try:
        return TypeAdapter(PrunerRecord).validate_json(json.dumps(_upgraded(path, header.get("record", ""))))
    except UsageError as error:
        raise InputError(f"{path} holds invalid options ({error}): train the pruner again") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the record"
        raise InputError(f"{path}: {where}: {first['msg']}: train the pruner again") from None


def _upgraded(path: Path, text: str) -> Any:
    """The record as it is written today. Files before 0.2 keep shared options among those of the training."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path}: the record is not JSON ({error}): train the pruner again") from None
    options = document.get("options") if isinstance(document, dict) else None
    if not isinstance(options, dict):
        return document
    if any(name in options for name in _NOT_RECORDED):
        raise InputError(f"{path}: options of one search stand in the record: train the pruner again")
    # Costs in milliseconds of single blocks existed before latency tables.
    if options.pop("unit", "macs") != "macs":
        raise InputError(f"{path} was trained on milliseconds of blocks: train the pruner again with a latency table")
    document |= {new: options.pop(old) for old, new in _MOVED.items() if old in options}
    if document.get("prompts"):
        document["classes"] = []  # They were the prompts' numbers.
    if "spent" in document:
        document["search_cost"] = document.pop("spent")
    return document


def _digest(record: str, tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(record.encode())
    for name, tensor in sorted(tensors.items()):
        content = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()  # NumPy has no bfloat16.
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode() + content)
    return digest.hexdigest()


def _checked(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Header and tensors. InputError where they differ from the file's sha256."""
    header, tensors = _read(path)
    if header.get("sha256") != _digest(header.get("record", ""), tensors):
        raise InputError(f"{path} is damaged (it differs from its own sha256): train the pruner again")
    return header, tensors


def _read(path: Path, only_header: bool = False) -> tuple[dict[str, str], dict[str, Any]]:
    if not path.is_file():
        raise InputError(f"{path} is not a file: name a pruner that method dipgo wrote")
    try:
        with safe_open(path, "pt") as file:
            names = [] if only_header else file.keys()
            return file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        if (kind := file_kind(path)) != "a safetensors file" and path.suffix != ".pruner":
            raise InputError(f"{path} is {kind}, expected a pruner: name a file that method dipgo wrote") from None
        raise InputError(f"{path} is damaged ({error}): train the pruner again") from None
