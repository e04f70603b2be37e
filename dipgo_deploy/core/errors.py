"""The exceptions of the project. Each class carries the exit code of the command line.

A message is one line: the expected value, the actual value, and what to do.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | unexpected failure |
| 2 | usage |
| 3 | bad, unsafe or incompatible input |
| 4 | a quality or accuracy gate was not met |
| 5 | something is missing in the environment |
| 130 | interrupted by Ctrl-C |
| 143 | ended by SIGTERM |
| 129 | ended with its terminal (SIGHUP) |
"""

from __future__ import annotations

__all__ = ["DipgoError", "GateError", "InputError", "MissingError", "UsageError", "first_line"]


class DipgoError(Exception):
    """Root of every error that the project raises on purpose."""

    exit_code = 1


class UsageError(DipgoError):
    """An option or argument is invalid, whatever the files contain."""

    exit_code = 2


class InputError(DipgoError):
    """A file or model is missing, damaged, unsafe or does not fit the others, or a file cannot be written."""

    exit_code = 3


class GateError(DipgoError):
    """Everything ran, but a tolerance or quality gate was not met."""

    exit_code = 4


class MissingError(DipgoError):
    """The environment lacks something: a GPU, enough of its memory, a driver, an optional package."""

    exit_code = 5


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without its full stop. An error without a message gives its type."""
    line, *_ = str(error).strip().splitlines() or [""]
    return line.rstrip(".") or type(error).__name__
