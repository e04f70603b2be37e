"""What a deployed denoiser does with the methods of the diffusers class whose place it takes.

1. Options of memory and speed that do not change values are ignored with a warning: graphs have their own.
2. What turns off something that is not on does nothing: ``disable_freeu``, ``unload_lora``.
3. What would change the values of the graphs is refused: FreeU, LoRAs, attention processors, caches.
4. Layers and every other attribute that only the PyTorch model has raise NoSuchPart, which is an AttributeError too, so
   that ``hasattr`` and ``getattr`` with a default work as usual.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from inspect import getattr_static
from typing import Any

from dipgo_deploy.core.errors import UsageError

__all__ = ["NoSuchPart", "missing_part", "replaced_members"]

_IGNORED = (
    "compile", "compile_repeated_blocks", "dequantize", "disable_forward_chunking", "disable_gradient_checkpointing",
    "disable_npu_flash_attention", "disable_xformers_memory_efficient_attention", "disable_xla_flash_attention",
    "enable_forward_chunking", "enable_gradient_checkpointing", "enable_group_offload", "enable_layerwise_casting",
    "enable_npu_flash_attention", "enable_xformers_memory_efficient_attention", "enable_xla_flash_attention",
    "reset_attention_backend", "set_attention_backend", "set_attention_slice",
    "set_use_memory_efficient_attention_xformers", "set_use_npu_flash_attention", "set_use_xla_flash_attention",
)  # fmt: skip
"""Options of memory and speed."""

_NOTHING_TO_DO = (
    "delete_adapters", "disable_adapters", "disable_cache", "disable_freeu", "disable_lora",
    "set_default_attn_processor", "unfuse_lora", "unfuse_qkv_projections", "unload_lora",
)  # fmt: skip
"""Methods that turn something off."""

_REFUSED = ("enable_parallelism", "from_config", "from_single_file", "load_state_dict")
"""Methods of every diffusers model that a deployed denoiser cannot have."""


class NoSuchPart(UsageError, AttributeError):
    """A part of the PyTorch model that a deployed denoiser does not have."""


def missing_part(model_class: str, name: str) -> NoSuchPart:
    """The error for an attribute that only the PyTorch model has.

    Args:
        model_class: the diffusers class whose place is taken.
        name: of the attribute.

    Returns:
        The error. Its message is one line.
    """
    return NoSuchPart(f"a deployed {model_class} has no {name}, because graphs stand for its layers: {_remedy(name)}")


def replaced_members(kind: type | None, taken: type) -> dict[str, Any]:
    """Members for the class of a deployed denoiser.

    Args:
        kind: the diffusers class whose place is taken.
        taken: the class of all deployed denoisers. What it defines itself stays.

    Returns:
        Members by name: methods that do nothing, warn or refuse.
    """
    model_class = kind.__name__ if kind is not None else "model"
    public = [name for name in dir(kind) if not name.startswith("_")] if kind is not None else []
    methods = [name for name in public if not hasattr(taken, name) and callable(getattr_static(kind, name, None))]
    methods += [name for name in public if isinstance(getattr_static(kind, name, None), classmethod)]
    members: dict[str, Any] = {}
    for name in {*methods, *_IGNORED, *_REFUSED}:
        if name not in vars(taken):
            members[name] = _member(model_class, name)
    return members


def _member(model_class: str, name: str) -> Any:
    if name in _IGNORED:
        return _ignored(model_class, name)
    if name in _NOTHING_TO_DO:
        return _unless_traced(model_class, name)
    if name == "active_adapters":
        return lambda self: []
    refuse = _refused(model_class, name)
    return classmethod(refuse) if name.startswith("from_") else refuse


def _ignored(model_class: str, name: str) -> Callable[..., None]:
    def ignore(self: Any, *_: Any, **__: Any) -> None:
        warnings.warn(f"{name} has no effect on a deployed {model_class}, whose graphs are fixed", stacklevel=2)

    return ignore


def _unless_traced(model_class: str, name: str) -> Callable[..., None]:
    refuse = _refused(model_class, name)

    def turn_off(self: Any, *args: Any, **kwargs: Any) -> None:
        # The graphs of a module with behaviour of its own may hold what is to be turned off.
        if self.bundle.manifest.behaviour:
            refuse(self, *args, **kwargs)

    return turn_off


def _refused(model_class: str, name: str) -> Callable[..., None]:
    def refuse(_: Any, *__: Any, **___: Any) -> None:
        raise UsageError(f"{name} cannot change a deployed {model_class}, whose graphs are fixed: {_remedy(name)}")

    return refuse


def _remedy(name: str) -> str:
    if "ip_adapter" in name:
        return "use the PyTorch model in the pipeline for IP adapters"
    if "lora" in name or "adapter" in name:
        return "graphs take a LoRA only before the export, so fuse it before tracing, with with_loras"
    if name.startswith("from_"):
        return "use from_bundle"
    if "cache" in name:
        return "the schedule of the bundle reuses features already, so leave it out"
    return "change the PyTorch model and export it again, or use the PyTorch model in the pipeline"
