"""A text for any Python value that a forward may depend on, the same in every process.

1. Plain data, tensors and containers are described by content, objects by class and attributes.
2. Functions and classes of libraries are described by name. Other functions are described by bytecode, defaults,
   closure and the globals that they read, other classes by their attributes. Names of files are left out.
3. Modules, parameters and buffers of the described network are described by their place in it.
4. A value that hides its state, such as an object of an extension, is described by its class. ``hidden`` counts these.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import logging
import re
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from dipgo_deploy.models.identity.library import is_importable, is_library, layers_of, package_of

__all__ = ["Describer", "names_in"]

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...), range, slice, enum.Enum, re.Pattern)
_TORCH_PLAIN = (torch.dtype, torch.device, torch.Size, torch.memory_format, torch.layout)
_WITHOUT_EFFECT = (logging.Logger, type(threading.Lock()), type(threading.RLock()), threading.local)
_SKIPPED = frozenset(
    "__module__ __dict__ __weakref__ __doc__ __qualname__ __annotations__ __parameters__ __firstlineno__ "
    "__static_attributes__ __abstractmethods__ _abc_impl __orig_bases__ __slots__".split()
)
"""Attributes of a class that do not change what its methods do."""


def names_in(code: CodeType) -> Iterator[str]:
    """The global and attribute names that a function reads, with those of the functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_in(constant)


class Describer:
    """Describes values that belong to one network.

    Args:
        network: the network.

    Attributes:
        hidden: how many values with hidden state were described.
        is_foreign: whether the last text holds code that is not of a library.
    """

    def __init__(self, network: nn.Module) -> None:
        self._places: dict[int, str] = {}
        for name, module in network.named_modules():
            self._places.setdefault(id(module), f"module {name!r}")
        # Alive, because other values may not take their ids.
        self._tensors = [*network.named_parameters(), *network.named_buffers()]
        for name, tensor in self._tensors:
            self._places.setdefault(id(tensor), f"tensor {name!r}")
        self._seen: dict[int, tuple[int, Any]] = {}
        self.hidden = 0
        self.is_foreign = False

    def text(self, value: Any) -> str:
        """The text of a value on its own: it does not depend on the values before."""
        self._seen.clear()
        self.is_foreign = False
        return self.describe(value)

    def describe(self, value: Any) -> str:
        """The text of a part of a value. A part that has been described is named by its number."""
        if isinstance(value, _PLAIN):
            return f"{type(value).__name__} {value!r}"
        if isinstance(value, _TORCH_PLAIN):
            return repr(value)
        if isinstance(value, (PurePath, *_WITHOUT_EFFECT)):
            return type(value).__name__
        if id(value) in self._places:
            return self._places[id(value)]
        if id(value) in self._seen:
            return f"value {self._seen[id(value)][0]}"
        self._seen[id(value)] = (len(self._seen), value)
        return self._describe_new(value)

    def _describe_new(self, value: Any) -> str:
        if isinstance(value, torch.Tensor):
            return _tensor(value)
        if isinstance(value, np.ndarray | np.generic):
            return f"array {value.dtype} {np.shape(value)} {_sha(np.ascontiguousarray(value).tobytes())}"
        if isinstance(value, Mapping):
            return f"{type(value).__name__} {{{self._items(value)}}}"
        if isinstance(value, list | tuple | deque):
            # A config from JSON has lists where a config from Python has tuples.
            return f"sequence [{', '.join(map(self.describe, value))}]"
        if isinstance(value, set | frozenset):
            texts = map(repr, value) if all(isinstance(item, _PLAIN) for item in value) else map(self.describe, value)
            return f"set [{', '.join(sorted(texts))}]"
        if isinstance(value, weakref.ref):
            return f"reference to {self.describe(value())}"
        return self._describe_code(value)

    def _describe_code(self, value: Any) -> str:
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, MethodType):
            return f"method {self.describe(value.__func__)} of {self.describe(value.__self__)}"
        if isinstance(value, staticmethod | classmethod):
            return f"{type(value).__name__} {self.describe(value.__func__)}"
        if isinstance(value, property):
            return f"property {self.describe(value.fget)} {self.describe(value.fset)}"
        if isinstance(value, functools.partial | functools.partialmethod):
            return f"partial {self.describe([value.func, value.args, value.keywords])}"
        if isinstance(value, functools.cached_property):
            return f"cached {self.describe(value.func)}"
        if isinstance(value, ModuleType):
            return f"import {value.__name__}"
        if isinstance(value, BuiltinFunctionType) or (callable(value) and not hasattr(value, "__dict__")):
            return f"built-in {getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__name__)}"
        return self._class(value) if isinstance(value, type) else self._object(value)

    def _items(self, mapping: Mapping[Any, Any]) -> str:
        return ", ".join(f"{key!r}: {self.describe(mapping[key])}" for key in sorted(mapping, key=repr))

    def _object(self, value: Any) -> str:
        attributes = dict(getattr(value, "__dict__", {}))
        for owner in type(value).__mro__:
            slots = owner.__dict__.get("__slots__", ())
            names = (slots,) if isinstance(slots, str) else slots
            attributes |= {name: getattr(value, name) for name in names if hasattr(value, name) and name[:2] != "__"}
        if isinstance(value, nn.Module):
            attributes = {name: part for name, part in attributes.items() if "hook" not in name or part}
        if _is_extension(type(value)):
            self.hidden += 1
        return f"{self.describe(type(value))} {{{self._items(attributes)}}}"

    def _class(self, owner: type) -> str:
        if is_library(owner) and is_importable(owner):
            return f"class {owner.__module__}.{owner.__qualname__}"
        self.is_foreign = True
        bases = ", ".join(self.describe(base) for base in owner.__bases__)
        return f"class {owner.__name__} ({bases}) {{{self._items(self.own_attributes(owner))}}}"

    @staticmethod
    def own_attributes(owner: type) -> dict[str, Any]:
        """The attributes of a class itself, without those that no method depends on."""
        return {name: value for name, value in vars(owner).items() if name not in _SKIPPED}

    def _function(self, function: FunctionType) -> str:
        package = package_of(function.__code__)
        closure = {
            name: cell.cell_contents
            for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
            if _is_set(cell) and name != "__class__"
        }
        if package is not None:
            name = f"{package}.{function.__code__.co_qualname}"
            return f"function {name} {{{self._items(closure)}}}" if closure else f"function {name}"
        self.is_foreign = True
        defaults = (function.__defaults__, function.__kwdefaults__)
        parts = [_bytecode(function.__code__), self.describe(defaults), self._items(closure), self._globals(function)]
        wrapped = layers_of(function)[1:2]
        return f"function {{{', '.join(parts)}}} {''.join(map(self.describe, wrapped))}"

    def _globals(self, function: FunctionType) -> str:
        names, scope = sorted(set(names_in(function.__code__))), function.__globals__
        values = {name: scope[name] for name in names if name in scope}
        for module_name, module in list(values.items()):
            if isinstance(module, ModuleType) and not is_library(module):
                values |= {f"{module_name}.{name}": vars(module)[name] for name in names if name in vars(module)}
        return self._items(values)


def _is_extension(kind: type) -> bool:
    """Whether objects of a class keep their state outside Python."""
    return not any("__dict__" in vars(base) or "__slots__" in vars(base) for base in kind.__mro__)


def _is_set(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - raises for an empty cell
    except ValueError:
        return False
    return True


def _bytecode(code: CodeType) -> str:
    """The digest of a code object without names of files and line numbers."""
    constants = []
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            constants.append(_bytecode(constant))
        elif isinstance(constant, frozenset):
            constants.append(repr(sorted(map(repr, constant))))
        else:
            constants.append(repr(constant))
    parts = (
        code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars, code.co_argcount,
        code.co_kwonlyargcount, code.co_flags,
    )  # fmt: skip
    return _sha(repr(parts).encode())


def _tensor(tensor: torch.Tensor) -> str:
    head = f"values {tuple(tensor.shape)} {tensor.dtype}"
    if tensor.is_meta:
        return f"{head} meta"
    return f"{head} {_sha(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)}"


def _sha(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()[:24]
