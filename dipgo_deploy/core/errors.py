"""The exceptions of the project: each one carries the exit code that the command line ends with.

A message is one line that says what was wanted, what was found and what to do. Exit codes: 0 done; 1 unexpected
failure; 2 usage; 3 bad, unsafe or incompatible input; 4 a quality or accuracy gate not met; 5 something missing in the
environment; 130 interrupted.
"""

from __future__ import annotations

__all__ = ["DipgoError", "GateError", "InputError", "MissingError", "UsageError", "first_line"]


class DipgoError(Exception):
    """Root of every error that the project raises on purpose."""

    exit_code = 1


class UsageError(DipgoError):
    """An option or argument makes no sense, whatever the files say."""

    exit_code = 2


class InputError(DipgoError):
    """A file or model is missing, damaged, unsafe, or does not fit the others; or one cannot be written."""

    exit_code = 3


class GateError(DipgoError):
    """A tolerance or quality gate was not met; everything ran."""

    exit_code = 4


class MissingError(DipgoError):
    """The environment lacks something: a GPU, enough of its memory, a driver, an optional package."""

    exit_code = 5


def first_line(error: BaseException) -> str:
    """The first line of what another library's error says, without its full stop; its type where it says nothing."""
    line, *_ = str(error).strip().splitlines() or [""]
    return line.rstrip(".") or type(error).__name__
