"""Numbers with their units, as the views print them."""

from __future__ import annotations

from dipgo_deploy.core.errors import UsageError

__all__ = ["bytes_of", "count_text", "macs_text", "mib_text", "step_range"]

MIB = 2**20
"""Bytes of one MiB."""


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


def bytes_of(text: str) -> int:
    """Bytes of ``8G``, ``512M`` or a plain number, powers of 1024; UsageError for anything else."""
    number, factor = text.strip().upper().removesuffix("B").removesuffix("I"), 1
    for unit, size in (("K", 2**10), ("M", 2**20), ("G", 2**30), ("T", 2**40)):
        if number.endswith(unit):
            number, factor = number[:-1], size
    try:
        count = round(float(number) * factor)
    except (ValueError, OverflowError):
        count = 0
    if count < 1:
        raise UsageError(f"{text!r} is no amount of memory: give one such as 8G or 512M")
    return count
