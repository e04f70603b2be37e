"""Packages that can be called: ``dipgo_deploy.verify`` is a package and, for users, also a function.

Importing the package binds its name in ``dipgo_deploy`` and hides a function of that name. Therefore the package
itself accepts calls and forwards them to the function.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

__all__ = ["make_callable"]


class _CallablePackage(ModuleType):
    """A module that forwards calls to its function ``_verb``."""

    _verb: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._verb(*args, **kwargs)


def make_callable(package: str, verb: Callable[..., Any]) -> None:
    """Make a package callable.

    Args:
        package: the name of the package, ``__name__`` in its ``__init__``.
        verb: the function that receives the calls.
    """
    module = sys.modules[package]
    module.__class__ = _CallablePackage
    module._verb = verb  # type: ignore[attr-defined]
    module.__wrapped__ = verb  # type: ignore[attr-defined] # help() and inspect.signature() show the function.
