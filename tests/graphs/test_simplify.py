"""Simplification folds what it may and never looks through a feature or into a parameter."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from onnxscript.optimizer import optimize_ir
from onnxscript.rewriter import rewrite

from dipgo_deploy.graphs.capture import capture
from dipgo_deploy.graphs.simplify import _optimize as own_optimiser
from dipgo_deploy.graphs.simplify import simplify
from tests.graphs.onnx_text import model_from_text, op_types, open_session, run_session
from tests.models.families import tiny

RESHAPES = """
agraph (float[2, 6] x) => (float[3, 4] last, float[4, 3] feature)
<int64[2] first_shape = {4, 3}, int64[2] last_shape = {3, 4}>
{
    feature = Reshape(x, first_shape)
    last = Reshape(feature, last_shape)
}
"""


def reads_of(model: ir.Model, output: str) -> set[str]:
    """Names that the node which gives ``output`` reads."""
    producer = next(value for value in model.graph.outputs if value.name == output).producer()
    assert producer is not None
    return {str(value.name) for value in producer.inputs if value is not None}


def strong_optimiser(model: ir.Model) -> None:
    """All of onnxscript's rewrite rules, to the last."""
    optimize_ir(model)
    rewrite(model)


@pytest.mark.parametrize("optimiser", [own_optimiser, strong_optimiser])
def test_no_rewrite_looks_through_a_feature(monkeypatch, optimiser) -> None:
    monkeypatch.setattr("dipgo_deploy.graphs.simplify._optimize", optimiser)
    model = model_from_text(RESHAPES)
    simplify(model, ["prediction", "block:0"], [])
    assert "block:0" in reads_of(model, "prediction") and "x" in reads_of(model, "block:0")
    assert op_types(model) == ["Reshape", "Reshape"]
    assert {node.domain for node in model.graph} == {""} and set(model.graph.opset_imports) == {""}
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    found = run_session(open_session(ir.to_proto(model).SerializeToString(), None), {"x": x})
    assert np.array_equal(found["prediction"], x.reshape(3, 4)) and np.array_equal(found["block:0"], x.reshape(4, 3))


def test_a_feature_that_equals_a_value_elsewhere_stays_a_value_of_its_own() -> None:
    """Two blocks compute the same of the same input: skipping one must not skip the other."""
    text = """
    agraph (float[2] x) => (float[2] y, float[2] a, float[2] b)
    {
        a = Tanh(x)
        b = Tanh(a)
        z = Add(a, b)
        y = Identity(z)
    }
    """
    model = model_from_text(text)
    simplify(model, ["prediction", "a:0", "b:0"], [])
    assert [value.name for value in model.graph.outputs] == ["prediction", "a:0", "b:0"]
    assert op_types(model) == ["Tanh", "Tanh", "Add"] and reads_of(model, "b:0") == {"a:0"}


def test_constants_fold_but_parameters_keep_their_orientation() -> None:
    text = """
    agraph (float[1, 2] x, float[3, 2] weight, float[3] scale) => (float[1, 3] y)
    {
        turned = Transpose<perm = [1, 0]>(weight)
        product = MatMul(x, turned)
        one = Constant<value = float[1] {1.0}>()
        two = Add(one, one)
        factor = Mul(scale, two)
        y = Mul(product, factor)
    }
    """
    weight = np.arange(6, dtype=np.float32).reshape(3, 2)
    model = model_from_text(text, weight=weight, scale=np.ones(3, np.float32))
    simplify(model, ["prediction"], ["weight", "scale"])
    assert sorted(op_types(model)) == ["MatMul", "Mul", "Mul", "Transpose"]
    assert np.array_equal(model.graph.initializers["weight"].const_value.numpy(), weight)
    x = np.array([[1.0, -2.0]], np.float32)
    found = run_session(open_session(ir.to_proto(model).SerializeToString(), None), {"x": x})
    assert np.allclose(found["prediction"], 2 * x @ weight.T)


def test_the_values_of_parameters_change_no_graph() -> None:
    """Neither are equal ones united, nor are a factor of 1 and a summand of 0 left out."""
    text = """
    agraph (float[3] x, float[3] one, float[3] other, float factor, float summand) => (float[3] y)
    {
        a = Mul(x, one)
        b = Mul(a, other)
        first = Constant<value = float[3] {2.0, 2.0, 2.0}>()
        second = Constant<value = float[3] {2.0, 2.0, 2.0}>()
        c = Pow(b, first)
        d = Pow(c, second)
        e = Mul(d, factor)
        y = Add(e, summand)
    }
    """
    parameters = {"one": np.ones(3, np.float32), "other": np.ones(3, np.float32)}
    parameters |= {"factor": np.float32(1).reshape(()), "summand": np.float32(0).reshape(())}
    model = model_from_text(text, **parameters)
    simplify(model, ["prediction"], [*parameters])
    assert op_types(model) == ["Mul", "Mul", "Pow", "Pow", "Mul", "Add"]
    initializers = model.graph.initializers
    assert {*parameters} < {*initializers} and len(initializers) == len(parameters) + 1
    assert all(np.array_equal(initializers[name].const_value.numpy(), value) for name, value in parameters.items())


@pytest.mark.parametrize("name", ["ddpm", pytest.param("dit", marks=pytest.mark.slow)])  # ddpm meets all rules of dit
def test_the_rules_leave_what_all_rules_of_onnxscript_leave(name: str, monkeypatch) -> None:
    captured, operators = capture(tiny(name), []), []
    proto = ir.to_proto(captured.model)
    for optimiser in (own_optimiser, optimize_ir):
        monkeypatch.setattr("dipgo_deploy.graphs.simplify._optimize", optimiser)
        model = ir.from_proto(proto)
        simplify(model, captured.outputs, [*model.graph.initializers])
        operators.append(Counter(op_types(model)))
    assert operators[0] == operators[1]


def test_an_inner_value_gives_up_a_name_that_an_output_takes() -> None:
    text = """
    agraph (float[2] x) => (float[2] y)
    {
        prediction = Tanh(x)
        y = Neg(prediction)
    }
    """
    model = model_from_text(text)
    simplify(model, ["prediction"], [])
    assert [node.outputs[0].name for node in model.graph] == ["prediction_inner", "prediction"]
