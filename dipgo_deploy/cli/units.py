"""Numbers with their units, as the views print them."""

from __future__ import annotations

from dipgo_deploy.core.tensors import MIB

__all__ = ["count_text", "macs_text", "mib_text", "step_range"]


def macs_text(macs: int) -> str:
    """MACs in the largest of T, G, M and k that leaves at least 1."""
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if macs >= size:
            return f"{macs / size:.2f} {unit}"
    return str(macs)


def mib_text(count: int) -> str:
    """Bytes in MiB, in KiB below a tenth of a MiB."""
    return f"{count / MIB:.1f} MiB" if count >= MIB / 10 else f"{count / 1024:.1f} KiB"


def step_range(first: int, last: int) -> str:
    """``3`` or ``3-7``."""
    return str(first) if first == last else f"{first}-{last}"


def count_text(count: int, noun: str) -> str:
    """``1 graph``, ``2 graphs``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
