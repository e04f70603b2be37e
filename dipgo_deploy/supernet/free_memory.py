"""Memory that a device can still give, in bytes."""

from __future__ import annotations

import os
from pathlib import Path

import torch

__all__ = ["TRACE_MEMORY", "free_bytes", "free_host_bytes"]

TRACE_MEMORY = 2.2
"""Peak memory of a trace and its cuts at most, in weights of the model."""

_MEMINFO = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU, or of the host within the limit of the container that this process runs in."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_host_bytes()


def free_host_bytes() -> int:
    """Free memory of the host within the limit of the container that this process runs in."""
    return min(_host_bytes(), _group_bytes(_GROUP))


def _host_bytes() -> int:
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        # No Linux: half of what is built in, where the system says so.
        pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
        return pages * os.sysconf("SC_PAGE_SIZE") // 2 if pages else 4 << 30


def _group_bytes(group: Path) -> int:
    """What the control group has left; file cache, which the system gives up when asked, counts as left."""
    try:
        limit, used = int((group / "memory.max").read_text()), int((group / "memory.current").read_text())
        cache = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return limit - used + int(cache["inactive_file"])
    except (OSError, KeyError, ValueError):
        return 1 << 62
