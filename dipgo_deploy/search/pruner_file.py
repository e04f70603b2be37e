"""A pruner on disk: its tensors and the optimiser's as safetensors, and in the header what they were trained for.

Written after every few iterations, whole or not at all; training goes on from it as if it had never stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from dipgo_deploy.core.blocks import BlockGraph, Kind
from dipgo_deploy.core.contract import Contract, check_same_contract
from dipgo_deploy.core.disk import write_atomic
from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.files import FORMAT_VERSION
from dipgo_deploy.search.dipgo_options import DipgoOptions
from dipgo_deploy.search.training import Training

__all__ = ["PrunerRecord", "load_training", "read_record", "save_training", "shipped_pruner"]

_FORMAT = "pruner"
_SHIPPED = Path(__file__).parent / "shipped"
_FREE = ("checkpoint", "polish", "polish_images")
"""Options that training does not depend on."""


@dataclass(frozen=True)
class PrunerRecord:
    """What a pruner was trained for and how far; ``seconds`` and ``spent`` (full trajectories of one image) so far."""

    contract: Contract
    granularity: str
    kind: Kind
    blocks: tuple[str, ...]
    options: DipgoOptions
    done: int
    spent: float
    seconds: float

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)


def save_training(path: Path, training: Training) -> None:
    """Write ``training`` as it stands."""
    record = PrunerRecord(
        training.contract, training.graph.granularity, training.kind, training.graph.block_names,
        training.options, training.done, training.spent, training.seconds,
    )  # fmt: skip
    text, tensors = TypeAdapter(PrunerRecord).dump_json(record).decode(), training.state()
    header = {
        "format": _FORMAT,
        "format_version": FORMAT_VERSION,
        "record": text,
        "sha256": _digest(text, tensors),
    }
    write_atomic(path, save(tensors, metadata=header))


def shipped_pruner(model: str) -> Path:
    """The unfinished pruner that ships for a reference model (its stages, DDIM with 50 steps, no guidance)."""
    path = _SHIPPED / f"{model}.pruner"
    if not path.is_file():
        raise InputError(f"no pruner ships for {model}: train one with search --method dipgo")
    return path


def read_record(path: Path) -> PrunerRecord:
    """The header of a pruner's file. InputError where it is none, damaged or newer than this program."""
    header = _read(path, only_header=True)[0]
    if header.get("format") != _FORMAT:
        raise InputError(f"{path} is no pruner's file: name one that search --method dipgo wrote")
    version = header.get("format_version", "0")
    if version.split(".")[0] != FORMAT_VERSION.split(".")[0]:
        raise InputError(f"{path} has format version {version}, this program reads {FORMAT_VERSION}: update it")
    try:
        return TypeAdapter(PrunerRecord).validate_json(header.get("record", ""))
    except UsageError as error:
        raise InputError(f"{path} holds options that make no sense ({error}): train the pruner anew") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the record"
        raise InputError(f"{path}: {where}: {first['msg']}: train the pruner anew") from None


def load_training(path: Path, training: Training) -> None:
    """Bring ``training`` to where the file stands.

    Raises InputError where the file was made for another model, contract or blocks, or with other options: training on
    would be neither the one nor the other.
    """
    record = read_record(path)
    check_same_contract(training.contract, record.contract, str(path))
    graph: BlockGraph = training.graph
    for what, ours, theirs in (
        ("granularity", graph.granularity, record.granularity),
        ("kind", training.kind, record.kind),
        ("blocks", graph.block_names, record.blocks),
    ):
        if ours != theirs:
            raise InputError(f"{path} was trained for {what} {theirs}, {ours} is wanted: name another file")
    free = {name: getattr(record.options, name) for name in _FREE}
    wanted = replace(training.options, **free)
    if record.options != wanted:
        name = _first_difference(asdict(record.options), asdict(wanted))
        raise InputError(f"{path} was trained with another {name}: give the same options, or name another file")
    header, tensors = _read(path)
    if header.get("sha256") != _digest(header.get("record", ""), tensors):
        raise InputError(f"{path} is damaged (it differs from its own sha256): train the pruner anew")
    training.restore(tensors, record.done, record.spent, record.seconds)
    if not np.isfinite(training.scores()).all():
        raise InputError(f"{path} holds scores that are no numbers: train the pruner anew")


def _first_difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    return next(f"{name} ({found[name]}, not {wanted[name]})" for name in found if found[name] != wanted[name])


def _digest(record: str, tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(record.encode())
    for name, tensor in sorted(tensors.items()):
        content = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()  # NumPy has no bfloat16.
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode() + content)
    return digest.hexdigest()


def _read(path: Path, only_header: bool = False) -> tuple[dict[str, str], dict[str, Any]]:
    if not path.is_file():
        raise InputError(f"{path} is no file: name a pruner that search --method dipgo wrote")
    try:
        with safe_open(path, "pt") as file:
            names = [] if only_header else file.keys()
            return file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}): train the pruner anew") from None
