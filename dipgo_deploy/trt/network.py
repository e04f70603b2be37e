"""An ONNX graph as a network of the target: parsed strongly typed, its shapes set, its tensors read back."""

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
"""Our names of the library's types."""


def parse_network(trt: Any, builder: Any, onnx: str, logger: Any) -> tuple[Any, Any]:
    """Network and parser, which must outlive the build; InputError with every error that the parser names."""
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(onnx):
        errors = "; ".join(_words(parser.get_error(index)) for index in range(parser.num_errors))
        raise InputError(f"{onnx} is refused by the ONNX parser ({errors}): report it, or export another granularity")
    return network, parser


def _words(parser_error: Any) -> str:
    return f"{parser_error.node_operator()} {parser_error.node_name()}: {parser_error.desc()}"


def fix_shapes(network: Any, profile: Mapping[str, ProfileRange]) -> None:
    """Give every input the usual shape of its profile: nothing is left to run time."""
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        tensor.shape = profile[tensor.name].opt


def tensors_of(network: Any) -> dict[str, EngineTensor]:
    """Inputs and outputs with the shapes and types that the network itself has."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    found = {tensor.name: EngineTensor("input", tuple(tensor.shape), dtype_name(tensor.dtype)) for tensor in inputs}
    return found | {t.name: EngineTensor("output", tuple(t.shape), dtype_name(t.dtype)) for t in outputs}


def dtype_name(dtype: Any) -> str:
    """Our name of one of the library's types."""
    return DTYPE_NAMES.get(dtype.name, dtype.name)


def check_types(found: Mapping[str, EngineTensor], wanted: Mapping[str, str], graph: str) -> None:
    """InputError unless every tensor that the program binds is there in the type of its slot."""
    for name, dtype in wanted.items():
        if name not in found:
            raise InputError(f"{graph}: the network has no tensor {name!r}, the program binds one: export anew")
        if found[name].dtype != dtype:
            raise InputError(f"{graph}: {name!r} is {found[name].dtype} in the network, {dtype} is wanted: export anew")
