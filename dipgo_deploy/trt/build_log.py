"""What the library says while it builds: the build log, and the one number in it that is wanted afterwards."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["activation_bytes_in", "build_logger"]

_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+)")


def build_logger(trt: Any) -> Any:
    """An ``ILogger`` that prints all but details, with a letter for each severity, and keeps it in ``lines``."""
    letters = {
        trt.ILogger.INTERNAL_ERROR: "E",
        trt.ILogger.ERROR: "E",
        trt.ILogger.WARNING: "W",
        trt.ILogger.INFO: "I",
    }

    class BuildLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in letters:
                self.lines.append(f"[{letters[severity]}] {message}")
                print(self.lines[-1], flush=True)

    return BuildLogger()


def activation_bytes_in(lines: list[str]) -> int | None:
    """Device memory of one context at the largest shapes of its profile, as the builder said; None if it did not."""
    found = [match[1] for line in lines if (match := _ACTIVATIONS.search(line))]
    return int(found[-1]) if found else None
