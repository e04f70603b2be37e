"""Simplify an exported graph without moving anything across a block's border.

1. Every feature passes through a border node that the optimiser does not know, so that no rewrite looks through a
   feature. A consumer that read past a feature would still compute a block that is skipped.
2. Constants are folded and common subexpressions united while the values of parameters are hidden. Parameters keep
   their state-dict names and orientation, so the model can be loaded from the weights file of the graphs. The graph
   does not depend on the values of its weights.
3. Borders are removed, and outputs get their names.
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
"""The rewrites that match in exports of denoisers, in onnxscript's order.

onnxscript's default set has more: rules for operators that no denoiser uses outside of training (Dropout, Clip,
ScatterND, BatchNormalization, integers), and a rule that turns two Slices into a Split, which compares every pair of
nodes.
"""

_ROUNDS = 2
"""Rounds of folding and rewriting. A rewrite may leave nodes that can be folded."""


def simplify(model: ir.Model, outputs: Sequence[str], parameters: Iterable[str]) -> None:
    """Simplify a model in place.

    Args:
        model: the exported model.
        outputs: new names of the outputs, in order.
        parameters: names of the initializers that are never folded.
    """
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
    """Hide the values of parameters: inside the context only their type and shape are known."""
    values = [graph.initializers.pop(name) for name in list(graph.initializers) if name in parameters]
    contents = [value.const_value for value in values]
    for value in values:
        value.const_value = None
    yield
    for value, content in zip(values, contents, strict=True):
        value.const_value = content
        graph.register_initializer(value)


def _optimize(model: ir.Model) -> None:
    """Fold constants and apply the rules until nothing changes, then unite equal initializers and nodes."""
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
        feature = border.outputs[0]
        feature.shape, feature.type, feature.name = output.shape, output.type, f"border_{index}"
        producer = output.producer()
        assert producer is not None
        graph.insert_after(producer, border)
        for node, position in list(output.uses()):
            if node is not border:
                node.replace_input_with(position, feature)
        graph.outputs[index] = feature


def _remove_borders(graph: ir.Graph) -> None:
    for node in [node for node in graph if node.domain == _DOMAIN]:
        source, feature = node.inputs[0], node.outputs[0]
        assert source is not None
        for index, output in enumerate(graph.outputs):
            if output is feature:
                graph.outputs[index] = source
        ir.convenience.replace_all_uses_with(feature, source)
        graph.remove(node, safe=True)


def _rename_outputs(graph: ir.Graph, names: Sequence[str]) -> None:
    taken = {value.name: value for node in graph for value in node.outputs}
    for output, name in zip(graph.outputs, names, strict=True):
        other = taken.get(name)
        if other is not None and other is not output:
            other.name = f"{name}_inner"
        output.name = name
