from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from dipgo_deploy.graphs.half_graph import fixed_islands, half_graph
from dipgo_deploy.graphs.rounding import RANGE_SUFFIX, add_ranges, round_graph

CHAIN = """
<ir_version: 9, opset_import: ["" : 20]>
chain (float[N] x, float[N] timestep) => (float[N] mid, float[N] y)
<float big = {30000.0}, float small = {0.00002}, float freq = {0.5}>
{
  angle = Mul (timestep, freq)
  wave = Sin (angle)
  raised = Mul (x, big)
  lowered = Mul (raised, small)
  mid = Add (lowered, wave)
  y = Mul (mid, small)
}
"""


def parsed(text: str) -> ir.Model:
    """The model, its nodes named after their outputs and its values typed."""
    proto = onnx.parser.parse_model(text)
    for node in proto.graph.node:
        node.name = f"node_{node.output[0]}"
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def outputs(model: ir.Model, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def types(model: ir.Model) -> dict[str, str]:
    graph = model.graph
    values = [*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)]
    return {str(value.name): value.dtype.name for value in values}


X = np.array([0.25, 1.0, 4.0], np.float32)
TIME = np.array([900.0, 900.0, 900.0], np.float32)


def test_everything_is_half_but_the_timestep_and_its_angles():
    model = parsed(CHAIN)
    fixed = fixed_islands(model.graph, "float16")
    assert fixed == {"node_angle", "node_wave"}
    half_graph(model.graph, {"mid"}, "float16", fixed)
    kinds = types(model)
    assert {name for name, kind in kinds.items() if kind == "FLOAT"} == {"timestep", "freq:float32", "angle", "wave"}
    found = outputs(model, x=X.astype(np.float16), timestep=TIME)
    assert {name: value.dtype for name, value in found.items()} == {"mid": np.float16, "y": np.float16}
    wanted = outputs(parsed(CHAIN), x=X, timestep=TIME)
    assert np.abs(found["mid"] - wanted["mid"]).max() <= 2e-3 * np.abs(wanted["mid"]).max()


def test_angles_would_be_lost_in_half_precision():
    model = parsed(CHAIN)
    round_graph(model.graph, (), "float16", ())
    found = outputs(model, x=X, timestep=TIME + 0.3)["mid"][:2]
    wanted = outputs(parsed(CHAIN), x=X, timestep=TIME + 0.3)["mid"][:2]
    assert np.abs(found - wanted).max() > 0.05


def test_an_island_stays_in_float32_between_its_own_nodes_and_shares_weights_by_twins():
    model = parsed(CHAIN)
    half_graph(model.graph, {"mid"}, "float16", {"node_raised", "node_lowered", *fixed_islands(model.graph, "float16")})
    kinds = types(model)
    assert kinds["raised"] == kinds["lowered"] == kinds["small:float32"] == "FLOAT"
    assert kinds["small"] == kinds["mid"] == "FLOAT16"
    assert len([node for node in model.graph if node.op_type == "Cast"]) == 3  # x, lowered, wave


def test_a_value_at_which_graphs_are_cut_is_half_even_inside_an_island():
    model = parsed(CHAIN)
    names = [str(node.name) for node in model.graph]
    half_graph(model.graph, {"mid"}, "float16", names)
    kinds = types(model)
    assert (kinds["mid"], kinds["mid:raw"], kinds["mid:float"]) == ("FLOAT16", "FLOAT", "FLOAT")
    assert [str(v.name) for v in model.graph.outputs] == ["mid", "y"]
    assert outputs(model, x=X.astype(np.float16), timestep=TIME)["mid"].dtype == np.float16


def test_a_wide_cut_value_stays_float32_on_both_sides():
    model = parsed(CHAIN)
    half_graph(model.graph, {"mid"}, "float16", {"node_mid", *fixed_islands(model.graph, "float16")}, wide=["mid"])
    assert outputs(model, x=X.astype(np.float16), timestep=TIME)["mid"].dtype == np.float32


def test_bfloat16_raises_the_opset_and_keeps_what_onnx_does_not_have_in_it():
    model = parsed(CHAIN.replace("y = Mul (mid, small)", 'y = Einsum <equation = "i->i"> (mid)'))
    fixed = fixed_islands(model.graph, "bfloat16")
    assert fixed == {"node_angle", "node_wave", "node_y"}
    half_graph(model.graph, {"mid"}, "bfloat16", fixed)
    assert model.graph.opset_imports[""] == 22 and types(model)["mid"] == "BFLOAT16"
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_ranges_are_the_largest_magnitudes():
    model = parsed(CHAIN)
    add_ranges(model.graph)
    found = outputs(model, x=-X, timestep=TIME)
    assert found[f"raised{RANGE_SUFFIX}"] == 120000.0
    assert set(found) == {f"{name}{RANGE_SUFFIX}" for name in ("angle", "wave", "raised", "lowered", "mid", "y")}


@pytest.mark.parametrize(("dtype", "overflows"), [("float16", True), ("bfloat16", False)])
def test_a_rounded_graph_shows_the_overflow_that_onnxruntime_hides(dtype, overflows):
    typed = parsed(CHAIN)
    fixed = fixed_islands(typed.graph, "float16")
    half_graph(typed.graph, (), "float16", fixed)
    assert np.isfinite(outputs(typed, x=X.astype(np.float16), timestep=TIME)["mid"]).all()
    model = parsed(CHAIN)
    round_graph(model.graph, (), dtype, fixed)
    found = outputs(model, x=X, timestep=TIME)["mid"]
    assert found.dtype == np.float32 and np.isinf(found[2]) == overflows and np.isfinite(found[:2]).all()


def test_a_rounded_graph_with_the_island_holds():
    model = parsed(CHAIN)
    round_graph(model.graph, {"mid"}, "float16", {"node_raised", "node_lowered", "node_angle", "node_wave"})
    found = outputs(model, x=X, timestep=TIME)
    wanted = outputs(parsed(CHAIN), x=X, timestep=TIME)
    assert np.abs(found["mid"] - wanted["mid"]).max() <= 1e-3 * np.abs(wanted["mid"]).max()
    assert np.array_equal(found["mid"], found["mid"].astype(np.float16))
