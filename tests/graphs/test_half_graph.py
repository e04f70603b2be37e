from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from dipgo_deploy.core.program import TIMESTEP
from dipgo_deploy.graphs.half_graph import always_fp32_nodes, half_blocks, half_graph
from dipgo_deploy.graphs.half_probe import RANGE_SUFFIX, add_ranges, round_graph
from tests.search.graphs import unet_like

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
    always_fp32 = always_fp32_nodes(model.graph, "float16")
    assert always_fp32 == {"node_angle", "node_wave"}
    half_graph(model.graph, {"mid"}, "float16", always_fp32)
    kinds = types(model)
    assert {name for name, kind in kinds.items() if kind == "FLOAT"} == {"timestep", "freq:float32", "angle", "wave"}
    values = outputs(model, x=X.astype(np.float16), timestep=TIME)
    assert {name: value.dtype for name, value in values.items()} == {"mid": np.float16, "y": np.float16}
    expected = outputs(parsed(CHAIN), x=X, timestep=TIME)
    assert np.abs(values["mid"] - expected["mid"]).max() <= 2e-3 * np.abs(expected["mid"]).max()


def test_half_blocks_are_half_but_the_timestep():
    blocks = unet_like()
    inputs = tuple(replace(spec, dtype="float32") for spec in blocks.inputs)
    assert TIMESTEP in {spec.name for spec in inputs}
    halved = half_blocks(replace(blocks, inputs=inputs), "float16", (), dict.fromkeys(blocks.weights, 2))
    assert {spec.name for spec in halved.inputs if spec.dtype != "float16"} == {TIMESTEP}


def test_angles_would_be_lost_in_half_precision():
    model = parsed(CHAIN)
    round_graph(model.graph, (), "float16", ())
    values = outputs(model, x=X, timestep=TIME + 0.3)["mid"][:2]
    expected = outputs(parsed(CHAIN), x=X, timestep=TIME + 0.3)["mid"][:2]
    assert np.abs(values - expected).max() > 0.05


def test_fallback_nodes_stay_in_float32_and_read_copies_of_shared_weights():
    model = parsed(CHAIN)
    half_graph(
        model.graph, {"mid"}, "float16", {"node_raised", "node_lowered", *always_fp32_nodes(model.graph, "float16")}
    )
    kinds = types(model)
    assert kinds["raised"] == kinds["lowered"] == kinds["small:float32"] == "FLOAT"
    assert kinds["small"] == kinds["mid"] == "FLOAT16"
    assert len([node for node in model.graph if node.op_type == "Cast"]) == 3  # x, lowered, wave


def test_a_value_at_which_graphs_are_cut_is_half_even_between_fallback_nodes():
    model = parsed(CHAIN)
    names = [str(node.name) for node in model.graph]
    half_graph(model.graph, {"mid"}, "float16", names)
    kinds = types(model)
    assert (kinds["mid"], kinds["mid:raw"], kinds["mid:float"]) == ("FLOAT16", "FLOAT", "FLOAT")
    assert [str(v.name) for v in model.graph.outputs] == ["mid", "y"]
    assert outputs(model, x=X.astype(np.float16), timestep=TIME)["mid"].dtype == np.float16


def test_an_fp32_tensor_stays_float32_on_both_sides_of_a_cut():
    model = parsed(CHAIN)
    half_graph(
        model.graph, {"mid"}, "float16", {"node_mid", *always_fp32_nodes(model.graph, "float16")}, fp32_tensors=["mid"]
    )
    assert outputs(model, x=X.astype(np.float16), timestep=TIME)["mid"].dtype == np.float32


def test_bfloat16_raises_the_opset_and_keeps_what_onnx_does_not_have_in_it():
    model = parsed(CHAIN.replace("y = Mul (mid, small)", 'y = Einsum <equation = "i->i"> (mid)'))
    always_fp32 = always_fp32_nodes(model.graph, "bfloat16")
    assert always_fp32 == {"node_angle", "node_wave", "node_y"}
    half_graph(model.graph, {"mid"}, "bfloat16", always_fp32)
    assert model.graph.opset_imports[""] == 22 and types(model)["mid"] == "BFLOAT16"
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_ranges_are_the_largest_magnitudes():
    model = parsed(CHAIN)
    add_ranges(model.graph)
    values = outputs(model, x=-X, timestep=TIME)
    assert values[f"raised{RANGE_SUFFIX}"] == 120000.0
    assert set(values) == {f"{name}{RANGE_SUFFIX}" for name in ("angle", "wave", "raised", "lowered", "mid", "y")}


@pytest.mark.parametrize(("dtype", "overflows"), [("float16", True), ("bfloat16", False)])
def test_a_rounded_graph_shows_the_overflow_that_onnxruntime_hides(dtype, overflows):
    typed = parsed(CHAIN)
    always_fp32 = always_fp32_nodes(typed.graph, "float16")
    half_graph(typed.graph, (), "float16", always_fp32)
    assert np.isfinite(outputs(typed, x=X.astype(np.float16), timestep=TIME)["mid"]).all()
    model = parsed(CHAIN)
    round_graph(model.graph, (), dtype, always_fp32)
    values = outputs(model, x=X, timestep=TIME)["mid"]
    assert values.dtype == np.float32 and np.isinf(values[2]) == overflows and np.isfinite(values[:2]).all()


def test_a_rounded_graph_with_fallback_nodes_holds():
    model = parsed(CHAIN)
    round_graph(model.graph, {"mid"}, "float16", {"node_raised", "node_lowered", "node_angle", "node_wave"})
    values = outputs(model, x=X, timestep=TIME)
    expected = outputs(parsed(CHAIN), x=X, timestep=TIME)
    assert np.abs(values["mid"] - expected["mid"]).max() <= 1e-3 * np.abs(expected["mid"]).max()
    assert np.array_equal(values["mid"], values["mid"].astype(np.float16))
