"""How a command line ends: an exit code, and at most one line on stderr.

Exit codes: 0 done, 1 unexpected failure, 2 usage, 3 bad, unsafe or incompatible input, 4 a quality or accuracy gate not
met, 5 something missing in the environment, 130 interrupted, 143 ended by SIGTERM, 129 by the end of its terminal.

The library's errors name parameters. OPTION_OF_PARAMETER translates them for the command line.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from types import FrameType

from typer.exceptions import TyperException

from dipgo_deploy.cli.terminal import say
from dipgo_deploy.core.errors import DipgoError, InputError, MissingError, UsageError, first_line

__all__ = ["OPTION_OF_PARAMETER", "RENAMED_OPTIONS", "exit_code", "signals_interrupt"]

OPTION_OF_PARAMETER: Mapping[str, str] = {
    "calibration_images": "--images",
    "compiler": "--compile",
    "cuda_graph": "--cuda-graph",
    "from_pruner": "--from-pruner",
    "gpu_memory": "--gpu-memory",
    "gpus": "--gpu",
    "guidance_scale": "--guidance-scale",
    "local_tolerance": "--tolerance",
    "max_graphs": "--max-graphs",
    "min_psnr_db": "--min-psnr",
    "negative_prompt": "--negative-prompt",
    "own_model": "--model",
    "random_weights": "--random-weights",
    "replace=True": "--force",
    "sampler_options": "--sampler-option",
    "trust_engines": "--trust-engines",
    "workspace_bytes": "--workspace",
}
"""Options by the parameter that they set. Only names that are unambiguous in a sentence."""

RENAMED_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "search": {
        "--guidance": "--guidance-layout",
        "--cost": "--latency",
        "--limit-graphs": "--max-graphs",
    },
    "export": {"--limit-graphs": "--max-graphs"},
    "import-schedule": {"--guidance": "--guidance-layout"},
    "profile": {"--guidance": "--guidance-layout", "--target": "--backend and --device"},
    "verify": {"--guidance": "--guidance-scale", "--target": "--backend"},
    "generate": {"--guidance": "--guidance-scale"},
    "bench": {"--guidance": "--guidance-scale"},
}
"""Options that were renamed, by command. The old name is refused with the new one, because its meaning was unclear."""

_PARAMETERS = re.compile(rf"(?<![\w./'-])({'|'.join(OPTION_OF_PARAMETER)})(?![\w./'-])")
"""Parameters in a sentence. Parts of paths, of quoted values and of dotted recipe keys are none."""

_EXTRAS = {"onnxruntime": "cpu", "tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}
"""Optional modules, and the extra that installs each."""

_INTERRUPTED = 130

_received: list[signal.Signals] = []
"""The signal that ended this process, if there was one."""


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a command as Ctrl-C does: work in progress cleans up after itself.

    A second signal ends the process at once. Signals that the parent process ignores, as nohup does, stay ignored.
    """
    # Windows has no SIGHUP.
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in map(signal.Signals.__getitem__, names)}
    before = {number: handler for number, handler in before.items() if handler == signal.SIG_DFL}
    for number in before:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    _received.append(signal.Signals(number))
    raise KeyboardInterrupt


def exit_code(app: Callable[..., object], arguments: Sequence[str]) -> int:
    """Run one command line in this process.

    Args:
        app: the typer app.
        arguments: without the program's name.

    Returns:
        The exit code. Raises nothing but SystemExit.
    """
    _received.clear()
    try:
        code = app(args=list(arguments), prog_name="dipgo-deploy", standalone_mode=False)
        if code == _INTERRUPTED:  # typer turns KeyboardInterrupt into this code
            return _interrupted()
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return _interrupted()
    except TyperException as error:
        return _fail(_parser_message(error, arguments), UsageError.exit_code)
    except Exception as error:
        return _report(error, arguments)


def _interrupted() -> int:
    """The exit code after Ctrl-C, or 128 and the number of the signal, as shells count."""
    for number in _received:
        with suppress(OSError):  # the terminal may be gone
            return _fail(f"ended by {number.name}: run the same command again", 128 + number)
        return 128 + number
    return _fail("interrupted: run the same command again", _INTERRUPTED)


def _parser_message(error: TyperException, arguments: Sequence[str]) -> str:
    """What is wrong with a command line, and where its options are described."""
    # The parser's errors of a missing value know no command.
    typed = " ".join(["dipgo-deploy", *[word for word in arguments[:1] if not word.startswith("-")]])
    command = getattr(getattr(error, "ctx", None), "command_path", typed)
    option = getattr(error, "option_name", None)
    new_name = RENAMED_OPTIONS.get(command.split()[-1], {}).get(option or "")
    if new_name:
        return f"{option} was renamed: use {new_name}, see {command} --help"
    text = error.format_message().replace("Value error, ", "").rstrip(".")
    value = _value_of(text, arguments)
    return f"{text}{'' if value is None else f', got {value!r}'}: see {command} --help"


def _value_of(text: str, arguments: Sequence[str]) -> str | None:
    """The value of the option that a message on a wrong value names. None if the message names the value itself."""
    named = re.match(r"Invalid value for '(?:-\w, |-\w / )?(--[\w-]+)'", text)
    for option, value in pairwise([*arguments, ""]):
        if named and option == named[1] and repr(value) not in text:
            return value
    return None


def _report(error: Exception, arguments: Sequence[str]) -> int:
    if os.environ.get("DIPGO_TRACEBACK"):
        import traceback

        traceback.print_exception(error)
    if isinstance(error, DipgoError):
        # What the user typed stays as it is: `generate gpus` is about a folder of this name.
        typed = {*arguments}
        text = _PARAMETERS.sub(
            lambda match: match[1] if match[1] in typed else OPTION_OF_PARAMETER[match[1]], str(error)
        )
        return _fail(text, error.exit_code)
    extra = _EXTRAS.get((error.name or "").partition(".")[0]) if isinstance(error, ImportError) else None
    if extra:
        return _fail(f"{error}: pip install 'dipgo-deploy[{extra}]'", MissingError.exit_code)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror}: check path, permissions and free space", InputError.exit_code)
    return _fail(f"unexpected failure: {first_line(error)} (set DIPGO_TRACEBACK=1 to see where)", 1)


def _fail(message: str, code: int) -> int:
    say("error: " + " ".join(message.split()))
    return code
