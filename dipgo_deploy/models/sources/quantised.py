"""Quantised weights are refused by the name of their method.

A quantised model needs the layers of its library. diffusers would skip the scales of such a file, or fail far from the
cause. float8 weights without scales are ordinary numbers, and are cast as diffusers casts them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.models.sources.safetensors_header import Header

__all__ = ["check_config_unquantised", "check_unquantised"]

_METHODS = {
    r"\.(absmax|nested_absmax|quant_map|nested_quant_map)$|\.quant_state\.": "bitsandbytes in 4 bits",
    r"\.(SCB|weight_format)$": "bitsandbytes in 8 bits",
    r"\.(wscales|wtscale|wcscales|smooth|smooth_orig|smooth_factor)$": "SVDQuant (nunchaku)",
    r"\.(qweight|qzeros|g_idx)$": "GPTQ or AWQ",
    r"\.weight\._(data|scale|shift)$": "quanto",
    r"weight_(qdata|quant|q)$|\.tensor_impl\.": "torchao",
    r"\.(weight|input)_quantizer\.|\._amax$": "modelopt",
    r"\bscale_(weight|input)$|\.(weight|input|output)_scale(_\w+)?$|^scaled_fp8$|\.comfy_quant$": "scaled float8",
}
"""Methods of quantisation, by a pattern of the names of their tensors."""

_MATRIX = 2
_INTEGERS = re.compile(r"[IU]\d+|F4|F6\w*|F8_E8M0")
"""Types of safetensors that only quantised weights have."""

_REMEDY = "give the model with its unquantised weights"


def check_config_unquantised(config: Mapping[str, Any], path: Path) -> None:
    """Refuse a config that names a quantisation.

    Args:
        config: a model's ``config.json``.
        path: its file, for the message.

    Raises:
        InputError: the model is quantised.
    """
    entry = config.get("quantization_config")
    if not entry:
        return
    named = entry if isinstance(entry, Mapping) else {}
    method = next((named[key] for key in ("quant_method", "method", "quant_type", "format") if named.get(key)), None)
    raise InputError(f"{path} says that the weights are quantised by {method or 'an unnamed method'}: {_REMEDY}")


def check_unquantised(path: Path, header: Header) -> None:
    """Refuse a safetensors file with quantised weights.

    Args:
        path: the file, for the message.
        header: its header.

    Raises:
        InputError: the names or types of its tensors are those of a quantisation.
    """
    for pattern, method in _METHODS.items():
        if name := next((name for name in header.shapes if re.search(pattern, name)), None):
            raise InputError(f"{path} holds weights quantised by {method}, told by {name}: {_REMEDY}")
    for name, shape in header.shapes.items():
        if name.endswith("weight") and len(shape) >= _MATRIX and _INTEGERS.fullmatch(header.dtypes[name]):
            raise InputError(f"{path} holds {name} as {header.dtypes[name]}, which is quantised: {_REMEDY}")
    for key in ("quantization_config", "_quantization_metadata"):
        if key in header.metadata:
            raise InputError(f"{path} is quantised, as {key} in its header says: {_REMEDY}")
