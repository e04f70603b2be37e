"""Behaviour: what the forward of a live module depends on besides its class, config and weights.

A module that its class makes from its config has no behaviour of its own. Everything that differs is listed:

1. classes of submodules, and code of classes that are not of a library
2. plain attributes, such as processors, a replaced ``forward`` and the factors of FreeU
3. hooks of modules and of the whole process
4. buffers that no weights file holds
5. methods and functions of libraries that are replaced, see ``patches``
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.models.identity.describe import Describer
from dipgo_deploy.models.identity.patches import find_patches
from dipgo_deploy.models.suppress_logging import suppress_diffusers_logging

__all__ = ["Behaviour", "behaviour_of", "check_copy"]

_WITHOUT_EFFECT = frozenset(
    "_parameters _modules _buffers _non_persistent_buffers_set _internal_dict gradient_checkpointing "
    "_gradient_checkpointing_func _backward_hooks _backward_pre_hooks _is_full_backward_hook _state_dict_hooks "
    "_state_dict_pre_hooks _load_state_dict_pre_hooks _load_state_dict_post_hooks _forward_hooks_always_called "
    "_forward_hooks_with_kwargs _forward_pre_hooks_with_kwargs _compiled_call_impl _is_hf_initialized "
    "_hf_peft_config_loaded _diffusers_hook is_quantized _is_torch_compile call_super_init dump_patches".split()
)
"""Attributes that do not change what a forward gives without gradients. The config has a digest of its own.

``_diffusers_hook`` is where diffusers keeps hooks. ``cache_context`` makes an empty one, and ``live`` refuses others.
"""

_SHOWN = 3

_VALUES = re.compile(r"values \([^)]*\) \S+ \w+")

_NOTHING = "NoneType None"

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


@dataclass(frozen=True)
class Behaviour:
    """What a live module does besides what its class, config and weights say.

    A module of a class that is not of a library always has behaviour of its own: the code of its class.

    Attributes:
        entries: a text for everything that differs, by a name that a person understands.
        is_comparable: False where the class has no config to make a second module from, so that everything counts.
        is_certain: False where a value hides its state, so that equal entries do not show equal behaviour.
    """

    entries: Mapping[str, str]
    is_comparable: bool = True
    is_certain: bool = True

    def __bool__(self) -> bool:
        """Whether there is any behaviour."""
        return bool(self.entries)

    @property
    def digest(self) -> str:
        """sha256 over all entries."""
        return hashlib.sha256(json.dumps(self.entries, sort_keys=True).encode()).hexdigest()

    def differences(self, other: Behaviour) -> list[str]:
        """The names of entries that another behaviour lacks or has otherwise. Values of tensors are not compared."""
        names = sorted(self.entries.keys() | other.entries.keys())
        pairs = {name: (self.entries.get(name, ""), other.entries.get(name, "")) for name in names}
        return [name for name, pair in pairs.items() if _VALUES.sub("", pair[0]) != _VALUES.sub("", pair[1])]

    @property
    def summary(self) -> str:
        """The first names of what differs, and how many more there are."""
        if not self.is_comparable:
            return "the code of its class"
        names = list(self.entries)
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return ", ".join(names[:_SHOWN]) + more


@dataclass(frozen=True)
class _Part:
    """One submodule: texts of its class and attributes, and the buffers that no weights file holds.

    Texts in ``foreign`` hold code that is not of a library, so a name does not identify them.
    """

    foreign: frozenset[str] = frozenset()
    texts: Mapping[str, str] = field(default_factory=dict)
    buffers: Mapping[str, torch.Tensor] = field(default_factory=dict)


def behaviour_of(module: nn.Module, forward: Callable[..., Any] | None = None) -> Behaviour:
    """The behaviour of a live module.

    Args:
        module: a network. A module of a class without config is compared with nothing, so all of it counts.
        forward: a function that calls the network. It counts if it is not of a library.

    Returns:
        The behaviour, empty for a module as its class makes it.
    """
    describer = Describer(module)
    # Buffers of a weights file are compared there, and may take seconds to compute.
    has_buffers = any(part._non_persistent_buffers_set for part in module.modules())
    kind: Any = type(module)
    pristine = _pristine(kind, _config_text(module), has_buffers)
    entries: dict[str, str] = {}
    for path, part in _parts(module, describer).items():
        plain, prefix = pristine.get(path, _Part()), f"{path}." if path else ""
        for name, text in part.texts.items():
            # Diffusers reads attributes that may be missing, such as FreeU's factors, with None as their default.
            if name in part.foreign or plain.texts.get(name, _NOTHING) != text:
                entries[prefix + name] = text
        for name, buffer in part.buffers.items():
            if name not in plain.buffers or not _are_close(buffer, plain.buffers[name]):
                entries[prefix + name] = describer.text(buffer.clone())
    for name in _HOOKS:
        if hooks := getattr(torch_module, f"_global{name}"):
            entries[f"torch.nn.modules.module._global{name}"] = describer.text(list(hooks.values()))
    patches = find_patches(_classes(module))
    entries |= {name: describer.text(value) for name, value in patches.items()}
    text = describer.text(forward)
    if describer.is_foreign:
        entries["preset.forward"] = text
    return Behaviour(entries, bool(pristine), describer.hidden == 0)


def check_copy(class_name: str, dtype: str, original: Behaviour, copy: Behaviour) -> None:
    """Raise UsageError if a copy does something else than its original, because it would run the original.

    Args:
        class_name: of the network, for the message.
        dtype: of the copy, for the message.
        original: behaviour of the original.
        copy: behaviour of the copy.

    Raises:
        UsageError: the behaviours differ.
    """
    if changed := original.differences(copy):
        raise UsageError(
            f"this {class_name} cannot be copied, for {changed[0]} refers to the module itself: convert the module to "
            f"{dtype} before its behaviour is changed, and give it with that dtype"
        )


def _classes(module: nn.Module) -> Iterator[type]:
    """The classes of all submodules, and of the objects in their attributes, such as attention processors."""
    for part in module.modules():
        yield type(part)
        yield from (type(value) for value in vars(part).values() if not isinstance(value, type))


def _parts(module: nn.Module, describer: Describer) -> dict[str, _Part]:
    parts: dict[str, _Part] = {}
    for path, part in module.named_modules():
        texts, foreign = {}, set()
        for name, value in {"class": type(part), **vars(part)}.items():
            if name in _HOOKS:
                value = _hooks(value, getattr(part, f"{name}_with_kwargs"))
            if name not in _WITHOUT_EFFECT and (value or name not in _HOOKS) and not _is_own(part, name, value):
                texts[name] = describer.text(value)
                foreign |= {name} if describer.is_foreign else set()
        transient = part._non_persistent_buffers_set
        buffers = {name: value for name, value in part._buffers.items() if name in transient and value is not None}
        parts[path] = _Part(frozenset(foreign), texts, buffers)
    return parts


def _is_own(part: nn.Module, name: str, value: Any) -> bool:
    """Whether an attribute is the method of the class itself, as tools leave it that replace and restore a forward."""
    is_bound = isinstance(value, MethodType) and value.__self__ is part
    return is_bound and getattr(type(part), name, None) is value.__func__


def _hooks(hooks: Mapping[int, Any], with_kwargs: Mapping[int, bool]) -> list[tuple[Any, bool]]:
    """Hooks in order. Their keys are numbers that the process counts, so they are left out."""
    return [(hook, key in with_kwargs) for key, hook in hooks.items()]


def _are_close(buffer: torch.Tensor, plain: torch.Tensor) -> bool:
    """Whether a buffer has the values that its class gives it, up to the rounding of its dtype."""
    if buffer.shape != plain.shape or buffer.is_meta or plain.is_meta:
        return buffer.shape == plain.shape
    if not buffer.is_floating_point():
        return torch.equal(buffer.cpu(), plain.to(buffer.dtype))
    size = max(float(plain.double().abs().max()), 1e-12) if plain.numel() else 1.0
    difference = (buffer.cpu().double() - plain.double()).abs()
    return not buffer.numel() or float(difference.max()) <= 2 * torch.finfo(buffer.dtype).eps * size


def _config_text(module: nn.Module) -> str:
    config = getattr(module, "config", None)
    return json.dumps(dict(config), sort_keys=True, default=str) if isinstance(config, Mapping) else ""


@lru_cache(maxsize=8)
def _pristine(kind: Any, config: str, has_buffers: bool) -> Mapping[str, _Part]:
    """The submodules of a module that its class makes from its config. Empty where the class has no config."""
    if not config or not hasattr(kind, "from_config"):
        return {}
    device = _meta_parameters() if has_buffers else torch.device("meta")
    try:
        with suppress_diffusers_logging(), torch.random.fork_rng(devices=()), device:
            module = kind.from_config(json.loads(config)).eval()
    except Exception:  # A class of anyone else may need more than its config, and then all of it counts.
        return {}
    return _parts(module, Describer(module))


@contextmanager
def _meta_parameters() -> Iterator[None]:
    """New parameters are on the device ``meta``, so that they take neither memory nor time. Buffers have values."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.data.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
