"""MACs against counts by hand, and against PyTorch's own counter on the reference models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dipgo_deploy.core.blocks import Macs
from dipgo_deploy.graphs.macs import LAYER_NORM_MACS, node_macs
from dipgo_deploy.graphs.shapes import infer_specs
from tests.graphs.onnx_text import model_from_text
from tests.graphs.surgery import EVERY_TRACE


def weight(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


LINEAR = {
    # y = x W: 5 positions, 6 inputs, 7 outputs
    "MatMul(x, w)": ({"w": weight(6, 7)}, 5 * 6 * 7),
    # the same through a transposed weight of state-dict orientation
    "MatMul(x, turned)": ({"w": weight(7, 6)}, 5 * 6 * 7),
}


@pytest.mark.parametrize("call", LINEAR)
def test_linear_layers_count_in_both_conventions(call: str) -> None:
    weights, count = LINEAR[call]
    turn = "turned = Transpose<perm = [1, 0]>(w)\n" if "turned" in call else ""
    shape = ", ".join(map(str, weights["w"].shape))
    model = model_from_text(
        f"agraph (float[rows, 5, 6] x, float[{shape}] w) => (float[n, 5, 7] y) {{ {turn} y = {call} }}", **weights
    )
    assert total(model) == Macs(count, count)


def total(model) -> Macs:
    specs = infer_specs(model)
    return sum((node_macs(node, specs, {"rows": 1}) for node in model.graph), Macs(0, 0))


IMAGE = "float[rows, 2, 4, 4] x"
TOKENS = "float[rows, 5, 6] x"
CASES = {
    # name: (inputs, output, call, shapes of weights, MACs in papers, in full)
    "gemm": ("float[rows, 6] x", "float[n, 7] y", "Gemm(x, w, b)", {"w": (6, 7), "b": (7,)}, 42, 42),
    "gemm turned": ("float[rows, 6] x", "float[n, 7] y", "Gemm<transB = 1>(x, w)", {"w": (7, 6)}, 42, 42),
    # 3 outputs of 4x4, each a 3x3 kernel over 2 channels
    "conv": (IMAGE, "float[n, 3, 4, 4] y", "Conv<pads = [1, 1, 1, 1]>(x, w)", {"w": (3, 2, 3, 3)}, 864, 864),
    "grouped": (IMAGE, "float[n, 2, 4, 4] y", "Conv<group = 2>(x, w)", {"w": (2, 1, 1, 1)}, 32, 32),
    "strided": (IMAGE, "float[n, 3, 2, 2] y", "Conv<strides = [2, 2]>(x, w)", {"w": (3, 2, 1, 1)}, 24, 24),
    # every one of 2x4x4 inputs meets a 2x2 kernel for each of 3 outputs
    "upconv": (IMAGE, "float[n, 3, 8, 8] y", "ConvTranspose<strides = [2, 2]>(x, w)", {"w": (2, 3, 2, 2)}, 384, 384),
    "attention": (f"{TOKENS}, float[rows, 6, 7] z", "float[n, 5, 7] y", "MatMul(x, z)", {}, 0, 210),
    "norm": (TOKENS, "float[n, 5, 6] y", "LayerNormalization(x, w)", {"w": (6,)}, 30 * LAYER_NORM_MACS, 0),
    "einsum": (TOKENS, "float[n, 7, 5] y", 'Einsum<equation = "nsc,oc->nos">(x, w)', {"w": (7, 6)}, 210, 210),
    "einsum that moves": (TOKENS, "float[n, 6, 5] y", 'Einsum<equation = "nsc->ncs">(x)', {}, 0, 0),
    "tanh": (TOKENS, "float[n, 5, 6] y", "Tanh(x)", {}, 0, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_one_row_by_hand(name: str) -> None:
    inputs, output, call, shapes, papers, full = CASES[name]
    extra = "".join(f", float[{', '.join(map(str, shape))}] {key}" for key, shape in shapes.items())
    text = f"agraph ({inputs}{extra}) => ({output}) {{ y = {call} }}"
    model = model_from_text(text, **{key: weight(*shape) for key, shape in shapes.items()})
    assert total(model) == Macs(papers, full)


def test_a_layer_norm_with_a_learned_scale_counts_twice() -> None:
    text = f"agraph ({TOKENS}, float[6] w) => (float[n, 5, 6] y) {{ y = LayerNormalization(x, w) }}"
    model = model_from_text(text, w=weight(6))
    assert total(model) == Macs(30 * LAYER_NORM_MACS, 0)
    model.graph.initializers["w"].name = "model.norm.weight"
    assert total(model) == Macs(2 * 30 * LAYER_NORM_MACS, 0)


@pytest.mark.parametrize("name", ["digits-unet", "digits-dit"])
def test_reference_models_agree_with_torchs_counter(name: str, reference_model, traced) -> None:
    model, blocks = reference_model(name), traced(name, "stage").blocks
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model.forward(**model.example_inputs(2))
    assert blocks.macs.full == pytest.approx(counter.get_total_flops() / 2 / 2, rel=0.005)


@EVERY_TRACE
def test_the_sum_does_not_depend_on_the_blocks(name: str, granularity: str, traced) -> None:
    blocks, stage = traced(name, granularity).blocks, traced(name, "stage").blocks
    assert blocks.macs == stage.macs
    assert sum(piece.macs.papers for piece in blocks.pieces) == blocks.macs.papers
    assert 0 <= blocks.outside_macs.papers < blocks.macs.papers
    inside = sum(block.macs.papers for block in stage.blocks)
    assert inside >= 0.9 * stage.macs.papers
