"""Numbers with their units, as the views print them and the options give them."""

from __future__ import annotations

import re

from dipgo_deploy.core.contract import BatchRange
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.latency import MIB

__all__ = ["architectures", "batch_range", "byte_count", "count_text", "macs_text", "mib_text", "step_range"]


def macs_text(macs: int) -> str:
    """MACs in the largest of T, G, M and k that leaves at least 1."""
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if macs >= size:
            return f"{macs / size:.2f} {unit}"
    return str(macs)


def mib_text(count: int) -> str:
    """Bytes in MiB, in KiB below a tenth of one."""
    return f"{count / MIB:.1f} MiB" if count >= MIB / 10 else f"{count / 1024:.1f} KiB"


def step_range(first: int, last: int) -> str:
    """``3`` or ``3-7``."""
    return str(first) if first == last else f"{first}-{last}"


def count_text(count: int, noun: str) -> str:
    """``1 graph``, ``2 graphs``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def byte_count(text: str) -> int:
    """Bytes of ``8G``, ``512M``, ``64k`` or a plain number; multiples of 1024. UsageError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kKMGT]?)(?:i?B)?", text.strip())
    if not found or not float(found[1]):
        raise UsageError(f"{text!r} is no size: give a number with k, M, G or T, such as 8G")
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " "))


def architectures(text: str) -> tuple[str, ...]:
    """The GPU architectures of ``sm86,sm89``, in small letters. UsageError for an empty name."""
    names = tuple(part.strip().lower() for part in text.split(","))
    if not all(names):
        raise UsageError(f"--gpu {text!r} holds an empty name: give architectures with commas between, as sm86,sm89")
    return names


def batch_range(text: str) -> BatchRange:
    """The range of ``1-4-8`` (least, usual and most images), or of ``4`` alone. UsageError for anything else."""
    parts = text.split("-")
    if len(parts) not in (1, 3) or not all(part.isdecimal() and int(part) for part in parts):
        raise UsageError(f"--batch {text!r} is no range of images: give MIN-OPT-MAX, such as 1-4-8")
    low, usual, high = (int(part) for part in (parts if len(parts) == 3 else parts * 3))
    return BatchRange(low, usual, high)
