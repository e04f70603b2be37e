"""Code of libraries, which a name identifies, and code of anyone else, which only its content identifies.

A name such as ``BasicTransformerBlock.forward`` identifies code only while nobody has put another function there. The
code object of a function keeps the file and the qualified name that it was compiled from, so a patch shows.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import sysconfig
from functools import cache
from importlib.util import find_spec
from types import CodeType, FunctionType
from typing import Any

from torch import nn

__all__ = ["is_importable", "is_library", "is_original", "layers_of", "module_imports", "package_of"]

_LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "numpy", "dipgo_deploy")
"""Packages whose code is identified by name. The key of a cached trace holds the versions that matter."""

_GENERATED = ("__create_fn__", "namedtuple_")
"""Qualified names of functions that the standard library generates, for dataclasses and named tuples."""


@cache
def _folders() -> tuple[tuple[str, str], ...]:
    """The package and the folder of every library. Other files of site-packages are code of anyone else."""
    folders = [("", sysconfig.get_path("stdlib"))]
    for name in _LIBRARIES:
        spec = find_spec(name)
        folders += [(name, str(folder)) for folder in (spec.submodule_search_locations or ())] if spec else []
    return tuple((name, folder + os.sep) for name, folder in folders)


def package_of(code: CodeType) -> str | None:
    """The library that code was compiled from: its package, "" for the standard library, None for other code."""
    file = code.co_filename
    if file.startswith("<frozen ") or (file == "<string>" and code.co_qualname.startswith(_GENERATED)):
        return ""
    if "/site-packages/" in file or "\\site-packages\\" in file:
        return next((name for name, folder in _folders()[1:] if file.startswith(folder)), None)
    return next((name for name, folder in reversed(_folders()) if file.startswith(folder)), None)


def is_library(value: Any) -> bool:
    """Whether a function, class or module belongs to a library, as far as its own code or name tells."""
    if isinstance(value, FunctionType):
        return package_of(value.__code__) is not None
    name = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None)
    top = str(name or "builtins").partition(".")[0]
    return top in _LIBRARIES or top in sys.stdlib_module_names


def is_importable(owner: type) -> bool:
    """Whether module and name of a class lead to the class. A class that a function has made fails."""
    value: Any = sys.modules.get(owner.__module__)
    for name in owner.__qualname__.split("."):
        value = getattr(value, name, None)
    return value is owner


def layers_of(function: FunctionType) -> list[FunctionType]:
    """A function and the functions that it wraps, the outermost first."""
    layers: list[FunctionType] = []
    current: Any = function
    while isinstance(current, FunctionType) and current not in layers:
        layers.append(current)
        current = getattr(current, "__wrapped__", None)
    return layers


def is_original(owner: type, name: str, function: FunctionType) -> bool:
    """Whether a method of a library's class is the one that the class was written with.

    Args:
        owner: the class.
        name: the name of the method in the class.
        function: the function that is there now.

    Returns:
        True if every layer is the library's and the innermost layer was compiled from that class or its bases.
    """
    layers = layers_of(function)
    package = owner.__module__.partition(".")[0]
    packages = {package_of(layer.__code__) for layer in layers}
    if owner is nn.Module and None not in packages and name != "__call__":
        return True  # Libraries add methods for their own use, such as smart_apply of transformers.
    if not packages <= {package, "torch", ""}:
        return False
    code = layers[-1].__code__
    home = sys.modules.get(owner.__module__)
    if "<locals>" in code.co_qualname or code.co_filename == "<string>":
        return True
    if code.co_qualname in {f"{base.__qualname__}.{name}" for base in owner.__mro__}:
        return True
    if package == "torch" and code.co_qualname.startswith(f"{owner.__qualname__}."):
        return True  # Such as Module.__call__, which is another method of the same class.
    # A class body may name a function of its own file, or of its package, under another name.
    return code.co_filename == getattr(home, "__file__", None) and "." not in code.co_qualname


@cache
def module_imports(name: str) -> frozenset[str]:
    """The top-level packages that the source of a module imports, with its own package."""
    module = sys.modules.get(name)
    try:
        text = inspect.getsource(module) if module is not None else ""
    except (OSError, TypeError):
        text = ""
    imported = re.findall(r"^\s*(?:from|import)\s+(\w+)", text, re.MULTILINE)
    return frozenset({*imported, name.partition(".")[0], "builtins", "torch"})
