"""How every outcome of a command line becomes an exit code and at most one line on stderr.

Exit codes: 0 done; 1 unexpected failure; 2 usage; 3 bad, unsafe or incompatible input; 4 a quality or accuracy gate not
met; 5 something missing in the environment; 130 interrupted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from typer.exceptions import TyperException

from dipgo_deploy.cli.output import say
from dipgo_deploy.core.errors import DipgoError, InputError, MissingError, UsageError

__all__ = ["exit_code"]

_EXTRAS = {"onnxruntime": "cpu", "tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}
"""Optional modules and the extra that installs each."""

_INTERRUPTED = 130


def exit_code(app: Callable[..., object], arguments: Sequence[str]) -> int:
    """The exit code of one command line of ``app``, run in this process; no exception leaves but SystemExit."""
    try:
        code = app(args=list(arguments), prog_name="dipgo-deploy", standalone_mode=False)
        if code == _INTERRUPTED:  # typer turns the exception into this code
            return _fail("interrupted", _INTERRUPTED)
        return code if isinstance(code, int) else 0
    except TyperException as error:
        return _fail(_parser_message(error), UsageError.exit_code)
    except Exception as error:
        return _report(error)


def _parser_message(error: TyperException) -> str:
    """What the parser has against a command line, and where its options are described."""
    command = getattr(getattr(error, "ctx", None), "command_path", "dipgo-deploy")
    return f"{error.format_message().replace('Value error, ', '').rstrip('.')}: see {command} --help"


def _report(error: Exception) -> int:
    if os.environ.get("DIPGO_TRACEBACK"):
        import traceback

        traceback.print_exception(error)
    if isinstance(error, DipgoError):
        return _fail(str(error), error.exit_code)
    extra = _EXTRAS.get((error.name or "").partition(".")[0]) if isinstance(error, ImportError) else None
    if extra:
        return _fail(f"{error}: pip install 'dipgo-deploy[{extra}]'", MissingError.exit_code)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror}: check path, permissions and free space", InputError.exit_code)
    return _fail(f"{type(error).__name__}: {error} (set DIPGO_TRACEBACK=1 to see where)", 1)


def _fail(message: str, code: int) -> int:
    say("error: " + " ".join(message.split()))
    return code
