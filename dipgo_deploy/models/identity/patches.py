"""Patches of libraries: methods and functions that a forward uses, and that someone has replaced for the whole process.

1. Classes of submodules, of processors and of their bases: each method is the one that the class was written with.
2. Every global name that these methods read is bound to something that its module defines or imports, such as
   ``F.scaled_dot_product_attention``. Functions of diffusers are followed further.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any

from dipgo_deploy.models.identity.describe import names_in
from dipgo_deploy.models.identity.library import is_library, is_original, layers_of, module_imports, package_of

__all__ = ["find_patches"]

_SEARCHED = ("torch", "diffusers", "transformers", "peft")
"""Packages whose classes are searched. Code of anyone else is described as a whole."""

_ADDED = ("smart_apply",)
"""Methods that transformers adds to ``nn.Module`` when it initializes a model. No forward calls them."""

_DEVICES = ("torch.cuda", "torch.mps", "torch.xpu", "torch.npu", "torch.backends")
"""Modules that ask and set devices. Their functions do not change what a forward gives."""

_LOADING = ("diffusers.models.modeling_utils", "diffusers.configuration_utils", "diffusers.loaders", "diffusers.utils")
"""Modules that load and save. No forward calls them."""


def find_patches(classes: Iterable[type]) -> dict[str, Any]:
    """The replaced methods and functions by name.

    Args:
        classes: classes of submodules and processors.

    Returns:
        What is there now, by dotted name such as ``BasicTransformerBlock.forward``. Empty for libraries as installed.
    """
    search = _Search()
    for owner in classes:
        search.visit_class(owner)
    return dict(sorted(search.patches.items()))


class _Search:
    def __init__(self) -> None:
        self.patches: dict[str, Any] = {}
        self._visited: set[Any] = set()

    def visit_class(self, owner: type) -> None:
        for base in owner.__mro__:
            if (
                base in self._visited
                or not base.__module__.startswith(_SEARCHED)
                or base.__module__.startswith(_LOADING)
            ):
                continue
            self._visited.add(base)
            for name, value in vars(base).items():
                if name not in _ADDED:
                    self._visit_member(base, name, value)

    def _visit_member(self, owner: type, name: str, value: Any) -> None:
        is_wrapped = isinstance(value, functools.partial | functools.partialmethod | MethodType)
        if is_wrapped or ((hasattr(value, "__get__") or callable(value)) and not is_library(type(value))):
            self.patches[f"{owner.__name__}.{name}"] = value
        for function in _functions(value):
            if is_original(owner, name, function):
                self._visit_function(function)
            else:
                self.patches[f"{owner.__name__}.{name}"] = value

    def _visit_function(self, function: FunctionType) -> None:
        for layer in layers_of(function):
            if layer.__code__ in self._visited:
                continue
            self._visited.add(layer.__code__)
            scope, names = layer.__globals__, set(names_in(layer.__code__))
            self._visit_names(str(scope.get("__name__")), scope, names)

    def _visit_names(self, module: str, scope: dict[str, Any], names: set[str]) -> None:
        for name in names & scope.keys():
            value = scope[name]
            if isinstance(value, ModuleType):
                is_searched = value.__name__.startswith("torch") and not value.__name__.startswith(_DEVICES)
                if is_searched and value.__name__ != module:
                    self._visit_names(value.__name__, vars(value), names - {name})
            elif _is_foreign(value, module):
                self.patches[f"{module}.{name}"] = value
            elif module.startswith("diffusers.models"):
                self._follow(value)

    def _follow(self, value: Any) -> None:
        if isinstance(value, type) and value.__module__.startswith("diffusers.models"):
            self.visit_class(value)
        elif isinstance(value, FunctionType) and package_of(value.__code__) == "diffusers":
            self._visit_function(value)


def _functions(value: Any) -> Iterator[FunctionType]:
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    parts = (value.fget, value.fset) if isinstance(value, property) else (value,)
    yield from (part for part in parts if isinstance(part, FunctionType))


def _is_foreign(value: Any, module: str) -> bool:
    """Whether a global of a module comes from a package that the module neither is nor imports."""
    if isinstance(value, MethodType):
        value = value.__func__
    elif isinstance(value, functools.partial):
        value = value.func
    if isinstance(value, FunctionType):
        homes = {package_of(layer.__code__) for layer in layers_of(value)}
        tops = {str(layer.__module__).partition(".")[0] for layer in layers_of(value)}
        is_known = None not in homes and (homes <= {"", *module_imports(module)})
        return not (is_known or (None in homes and tops <= module_imports(module)))
    if not callable(value):
        return False
    top = str(getattr(value, "__module__", None) or "builtins").partition(".")[0]
    return top not in module_imports(module) and not is_library(value)
