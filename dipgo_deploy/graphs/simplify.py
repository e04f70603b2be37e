"""Simplify an exported graph without moving anything across a block's border.

1. Every feature passes through a border node, unknown to the optimiser, so that no rewrite looks through a feature: a
   consumer that read past it would go on computing a block that is skipped.
2. Constants are folded, common subexpressions united, while the parameters' values are hidden: they keep their
   state-dict names and their orientation, so that the model can be loaded from the graphs' own weights file, and a
   graph does not depend on what its weights are.
3. Borders are taken out and outputs take their names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir
import onnx_ir.passes.common as passes  # noqa: TID251 - the home of onnx_ir
from onnxscript import rewriter  # noqa: TID251 - the home of onnxscript
from onnxscript.optimizer import fold_constants_ir  # noqa: TID251 - the home of onnxscript
from onnxscript.rewriter.rules import common as rules  # noqa: TID251 - the home of onnxscript

__all__ = ["simplify"]

_DOMAIN = "dipgo_deploy.border"

_RULES = rewriter.RewriteRuleSet(
    [
        *rules.mul_by_1_rule.commute(),
        *rules.add_0_rule.commute(),
        rules.sub_0_rule,
        rules.div_by_1_rule,
        rules.two_reshapes_matmul_reshape_rule,
        rules.one_reshape_matmul_reshape_rule,
        rules.cast_constant_of_shape_rule,
        rules.cast_constant_of_shape_without_value_rule,
        rules.collapse_slice_rule,
        rules.collapse_slice2_rule,
        rules.materialize_reshape_shape_rule,
        rules.cast_cast_rule,
        rules.no_op_cast_rule,
        rules.no_op_expand_rule,
        rules.flatten_to_reshape_rule,
        rules.reshape_reshape_rule,
        rules.no_op_transpose_rule,
        rules.transpose_transpose_rule,
        rules.unsqueeze_unsqueeze_rule,
        rules.squeeze_reshape_1d_rule,
        rules.normalize_pad_format_conv_rule,
        rules.fuse_pad_into_conv_rule,
    ]
)
"""The rewrites that exports of denoisers meet, in onnxscript's order.

Left out of its own choice are those of operators that no denoiser has, or only in training (Dropout, Clip, ScatterND,
BatchNormalization, integers), and the one that makes a Split of two Slices: it compares all nodes with all.
"""

_ROUNDS = 2
"""What a rewrite leaves may be constant."""


def simplify(model: ir.Model, outputs: Sequence[str], parameters: Iterable[str]) -> None:
    """Simplify ``model`` in place; ``outputs`` renames its outputs in order, ``parameters`` are never folded."""
    _insert_borders(model.graph)
    with _hidden(model.graph, set(parameters)):
        _optimize(model)
    _remove_borders(model.graph)
    passes.IdentityEliminationPass()(model)
    _rename_outputs(model.graph, outputs)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)


@contextmanager
def _hidden(graph: ir.Graph, parameters: set[str]) -> Iterator[None]:
    """Inside the context nothing is known of the parameters but type and shape: what they are now decides nothing."""
    values = [graph.initializers.pop(name) for name in list(graph.initializers) if name in parameters]
    contents = [value.const_value for value in values]
    for value in values:
        value.const_value = None
    yield
    for value, content in zip(values, contents, strict=True):
        value.const_value = content
        graph.register_initializer(value)


def _optimize(model: ir.Model) -> None:
    """Fold constants and apply the rules, again where something changed; then unite what is equal."""
    passes.InlinePass()(model)
    for _ in range(_ROUNDS):
        folded = fold_constants_ir(model, onnx_shape_inference=True)
        rewritten = rewriter.RewritePass(_RULES)(model)
        passes.RemoveUnusedNodesPass()(model)
        passes.RemoveUnusedFunctionsPass()(model)
        if not folded.modified and not rewritten.modified:
            break
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.DeduplicateInitializersPass()(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.OutputFixPass()(model)
    passes.NameFixPass()(model)


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
