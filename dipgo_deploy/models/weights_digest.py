"""The digest of a module's weights, hashed again only after they changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["WeightsDigest", "canonical_config"]

_SAMPLES = 64
"""Elements of each tensor that show whether the tensor changed. Writes through ``.data`` leave no other trace."""


class WeightsDigest:
    """Hashes state dicts of one module, and remembers the digest of each state."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], str] = {}

    def digest(self, header: str, state: Mapping[str, torch.Tensor]) -> str:
        """The sha256 over ``header`` and every tensor by name. On ``meta`` only shapes are hashed.

        Args:
            header: text that the digest covers too.
            state: the state dict.

        Returns:
            The digest.
        """
        key = (header, *((name, *_mark(tensor)) for name, tensor in sorted(state.items())))
        if key not in self._known:
            self._known[key] = _hash(header, state)
        return self._known[key]


def canonical_config(config: Mapping[str, Any]) -> str:
    """JSON of a diffusers config with sorted keys, without private and machine-dependent entries."""
    return json.dumps({k: v for k, v in config.items() if not k.startswith("_")}, sort_keys=True, default=str)


def _hash(header: str, state: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}{' meta' * tensor.is_meta}".encode())
        if tensor.is_meta:
            continue
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _mark(tensor: torch.Tensor) -> tuple[object, ...]:
    """What shows that a tensor was replaced or written to: its place, its writes, and a few of its elements."""
    if tensor.is_meta:
        return tuple(tensor.shape), tensor.dtype
    # Inference tensors have no count of writes.
    writes = 0 if tensor.is_inference() else tensor._version
    flat = tensor.detach().reshape(-1)
    stride = max(1, len(flat) // _SAMPLES)
    return tensor.data_ptr(), writes, tensor.dtype, tuple(flat[::stride].double().tolist())
