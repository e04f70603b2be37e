"""A training on disk: its tensors as safetensors, and in the header its start and the search that it belongs to.

The file is written after every few steps, whole or not at all. A search that is run again continues from it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from dipgo_deploy.core.disk import write_atomic
from dipgo_deploy.core.errors import InputError, first_line
from dipgo_deploy.core.learned_sampler import LearnedSampler, read_learned_sampler
from dipgo_deploy.search.fit.teacher import Images
from dipgo_deploy.search.learned.options import LearnedOptions

__all__ = ["Saved", "load_saved", "save_training", "search_digest"]

_FORMAT = "learned-training"


@dataclass(frozen=True)
class Saved:
    """A training in a file: its start, what the fit recorded, finished steps, seconds so far and tensors."""

    start: LearnedSampler
    record: dict[str, str]
    done: int
    seconds: float
    tensors: dict[str, torch.Tensor]


def search_digest(images: Images, options: LearnedOptions) -> str:
    """sha256 over everything that a training depends on, except the file and what it recomputes."""
    contract = images.contract
    kept = {name: str(value) for name, value in vars(options).items() if name not in ("training", "recompute")}
    text = json.dumps(
        [contract.model_digest, contract.sampler.digest, contract.guidance, contract.latent_shape, contract.dtype,
         images.guidance_scale, images.seeds, images.labels, kept], sort_keys=True
    )  # fmt: skip
    return hashlib.sha256(text.encode()).hexdigest()


def save_training(path: Path, search: str, saved: Saved) -> None:
    """Write a training. ``search`` is the digest of its search. Raises InputError if the file cannot be written."""
    record = {"start": saved.start.document, "record": saved.record, "done": saved.done, "seconds": saved.seconds}
    text = json.dumps(record, sort_keys=True)
    header = {"format": _FORMAT, "search": search, "training": text, "sha256": _digest(text, saved.tensors)}
    write_atomic(path, save(saved.tensors, metadata=header))


def load_saved(path: Path, search: str) -> Saved:
    """Read a training.

    Args:
        path: the file.
        search: digest of the search that continues.

    Returns:
        The training.

    Raises:
        InputError: the file is damaged, holds no training, or belongs to another search.
    """
    try:
        with safe_open(path, "pt") as file:
            header: dict[str, str] = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({first_line(error)}): remove it, or name another file") from None
    if header.get("format") != _FORMAT:
        raise InputError(f"{path} holds no training of a learned sampler: name another file")
    if header.get("search") != search:
        raise InputError(f"{path} belongs to a search of other options, model or contract: name another file")
    text = header.get("training", "")
    if header.get("sha256") != _digest(text, tensors):
        raise InputError(f"{path} is damaged (it differs from its own sha256): remove it")
    try:
        record: dict[str, Any] = json.loads(text)
        start = read_learned_sampler(record["start"])
        notes = {str(name): str(value) for name, value in record["record"].items()}
        return Saved(start, notes, int(record["done"]), float(record["seconds"]), tensors)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({first_line(error)}): remove it") from None


def _digest(text: str, tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
