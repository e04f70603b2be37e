"""Simplify an exported graph without moving anything across a block's border.

1. Every feature passes through a border node, unknown to the optimiser, so that no rewrite looks through a feature: a
   consumer that read past it would go on computing a block that is skipped.
2. Constants are folded, common subexpressions united. A node that reads a parameter is never folded: parameters keep
   their state-dict names and their orientation, so that the model can be loaded from the graphs' own weights file.
3. Borders are taken out and outputs take their names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir
import onnx_ir.passes.common as passes  # noqa: TID251 - the home of onnx_ir
from onnxscript.optimizer import optimize_ir  # noqa: TID251 - the home of onnxscript

__all__ = ["simplify"]

_DOMAIN = "dipgo_deploy.border"


def simplify(model: ir.Model, outputs: Sequence[str], parameters: Iterable[str]) -> None:
    """Simplify ``model`` in place; ``outputs`` renames its outputs in order, ``parameters`` are never folded."""
    known = set(parameters)
    _insert_borders(model.graph)
    optimize_ir(model, should_fold=lambda node: False if _reads(node, known) else None)
    _remove_borders(model.graph)
    passes.IdentityEliminationPass()(model)
    _rename_outputs(model.graph, outputs)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)


def _reads(node: ir.Node, names: set[str]) -> bool:
    return any(value is not None and value.name in names for value in node.inputs)


def _insert_borders(graph: ir.Graph) -> None:
    model_imports = graph.opset_imports
    model_imports[_DOMAIN] = 1
    for index, output in enumerate(list(graph.outputs)):
        border = ir.Node(_DOMAIN, "Border", [output], num_outputs=1)
        passed = border.outputs[0]
        passed.shape, passed.type, passed.name = output.shape, output.type, f"border_{index}"
        producer = output.producer()
        assert producer is not None
        graph.insert_after(producer, border)
        for node, position in list(output.uses()):
            if node is not border:
                node.replace_input_with(position, passed)
        graph.outputs[index] = passed


def _remove_borders(graph: ir.Graph) -> None:
    for node in [node for node in graph if node.domain == _DOMAIN]:
        source, passed = node.inputs[0], node.outputs[0]
        assert source is not None
        for index, output in enumerate(graph.outputs):
            if output is passed:
                graph.outputs[index] = source
        ir.convenience.replace_all_uses_with(passed, source)
        graph.remove(node, safe=True)


def _rename_outputs(graph: ir.Graph, names: Sequence[str]) -> None:
    taken = {value.name: value for node in graph for value in node.outputs}
    for output, name in zip(graph.outputs, names, strict=True):
        other = taken.get(name)
        if other is not None and other is not output:
            other.name = f"{name}_inner"
        output.name = name
