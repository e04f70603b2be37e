"""Context managers that keep the logs and progress bars of libraries off the terminal while they load."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec

__all__ = ["suppress_diffusers_logging", "suppress_transformers_logging"]


@contextmanager
def suppress_diffusers_logging() -> Iterator[None]:
    """Let diffusers log errors only, without progress bars."""
    with _suppress("diffusers"):
        yield


@contextmanager
def suppress_transformers_logging() -> Iterator[None]:
    """Let transformers log errors only, without progress bars. Does nothing if transformers is not installed."""
    if find_spec("transformers") is None:
        yield
        return
    with _suppress("transformers"):
        yield


@contextmanager
def _suppress(library: str) -> Iterator[None]:
    logging = import_module(f"{library}.utils.logging")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
