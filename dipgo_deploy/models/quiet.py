"""Libraries kept quiet while they load, where a refusal is one line and a success none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec

__all__ = ["quiet_diffusers", "quiet_transformers"]


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Keep diffusers' warnings and bars off the terminal."""
    with _quiet("diffusers"):
        yield


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """The same of transformers, where it is installed."""
    if find_spec("transformers") is None:
        yield
        return
    with _quiet("transformers"):
        yield


@contextmanager
def _quiet(library: str) -> Iterator[None]:
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
