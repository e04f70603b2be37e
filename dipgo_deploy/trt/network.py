"""Parse an ONNX graph into a strongly typed network, set its shapes, and read its tensors back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dipgo_deploy.core.engine import EngineTensor, ProfileRange
from dipgo_deploy.core.errors import InputError

__all__ = ["DTYPE_NAMES", "check_types", "dtype_name", "fix_shapes", "parse_network", "tensors_of"]

DTYPE_NAMES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "BOOL": "bool",
}
"""Our names for the library's types."""


def parse_network(trt: Any, builder: Any, onnx: str, logger: Any) -> tuple[Any, Any]:
    """Parse an ONNX file.

    Args:
        trt: the module of the library.
        builder: a builder of the library.
        onnx: path of the file.
        logger: an ``ILogger``.

    Returns:
        Network and parser. Both must outlive the build.

    Raises:
        InputError: with every error of the parser.
    """
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(onnx):
        errors = "; ".join(_error_text(parser.get_error(index)) for index in range(parser.num_errors))
        raise InputError(f"the ONNX parser refuses {onnx} ({errors}): report this, or export another granularity")
    return network, parser


def _error_text(parser_error: Any) -> str:
    return f"{parser_error.node_operator()} {parser_error.node_name()}: {parser_error.desc()}"


def fix_shapes(network: Any, profile: Mapping[str, ProfileRange]) -> None:
    """Give every input the ``opt`` shape of its profile, so that no shape is left to run time."""
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        tensor.shape = profile[tensor.name].opt


def tensors_of(network: Any) -> dict[str, EngineTensor]:
    """Inputs and outputs with the shapes and types that the network itself reports."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    tensors = {tensor.name: EngineTensor("input", tuple(tensor.shape), dtype_name(tensor.dtype)) for tensor in inputs}
    return tensors | {t.name: EngineTensor("output", tuple(t.shape), dtype_name(t.dtype)) for t in outputs}


def dtype_name(dtype: Any) -> str:
    """Our name for a type of the library."""
    return DTYPE_NAMES.get(dtype.name, dtype.name)


def check_types(tensors: Mapping[str, EngineTensor], dtypes: Mapping[str, str], graph: str) -> None:
    """Check that the network has every tensor that the program binds, in the type of its slot.

    Args:
        tensors: tensors of the network.
        dtypes: dtypes that the program needs, by tensor name.
        graph: name for the message.

    Raises:
        InputError: a tensor is missing or has another type.
    """
    for name, dtype in dtypes.items():
        if name not in tensors:
            raise InputError(f"{graph}: the program binds tensor {name!r}, the network has none: re-export")
        if tensors[name].dtype != dtype:
            raise InputError(
                f"{graph}: the program needs {name!r} in {dtype}, the network has {tensors[name].dtype}: re-export"
            )
