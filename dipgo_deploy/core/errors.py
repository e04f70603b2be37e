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

import re
from textwrap import shorten

__all__ = ["DipgoError", "GateError", "InputError", "MissingError", "UsageError", "first_line"]

_NOISE = re.compile(
    r"\(?(Could this error message be improved|If you think this|(Please )?(open|file|report) an (issue|enhancement)).*"
    r"|\b(\w+\.)*[A-Z]\w*(Error|Exception): |https?://\S+",
    re.IGNORECASE,
)
"""What libraries put around what they have to say."""

_LENGTH = 300
"""Longest text of a library that becomes part of a message."""


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
    """What an error of a library says, as part of a message of our own.

    This is the first line of its text, without its full stop. A first line that ends with a colon announces a list, so
    it is followed by the second line. Names of exception classes are left out, and so are invitations to file an issue.

    Args:
        error: an exception of a library.

    Returns:
        One line of at most 300 characters. An error without a text gives "no reason given".
    """
    lines = [" ".join(line.split()) for line in _NOISE.sub("", str(error)).splitlines() if line.strip()]
    text = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    text = f"{text} is missing" if text and isinstance(error, KeyError) else text
    return shorten(text, _LENGTH, placeholder=" …").rstrip(".: ") or "no reason given"
