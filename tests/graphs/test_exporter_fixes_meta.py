"""Traces without weights: the same blocks, MACs, bytes and lowering as with them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch

from dipgo_deploy.bundle import export
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.program import memory_bytes
from dipgo_deploy.graphs import load_trace, trace
from dipgo_deploy.graphs.exporter_fixes import put_stand_ins
from dipgo_deploy.graphs.trace import BLOCKS_FILE
from dipgo_deploy.lowering import lower
from dipgo_deploy.models import LoadedModel, load_random, make_contract
from dipgo_deploy.models.sampler_reading import read_sampler
from dipgo_deploy.search import SearchOptions, schedule_by_rule
from tests.models.families import tiny


def without_weights(model: LoadedModel, folder) -> LoadedModel:
    model.module.save_config(folder)
    shapes = load_random(folder, device="meta")
    given = {name: getattr(model, name) for name in ("latent_shape", "text_tokens", "scheduler_config")}
    return replace(shapes, **given)


@pytest.mark.parametrize(("name", "granularity"), [("sd", "stage"), ("flux", "branch")])
def test_shapes_alone_give_the_same_block_graph(name, granularity, tmp_path):
    whole = tiny(name)
    with torch.no_grad():
        for parameter in whole.module.parameters():
            parameter += 0.1 * torch.rand(parameter.shape)  # norms that start equal would share their weights
    shapes = without_weights(whole, tmp_path / "config")
    assert not shapes.has_weights and shapes.weight_bytes == whole.weight_bytes
    known, found = (trace(model, granularity=granularity).blocks for model in (whole, shapes))
    assert found.blocks == known.blocks and found.inputs == known.inputs
    assert (found.macs, found.weight_bytes) == (known.macs, known.weight_bytes)
    assert [piece.macs for piece in found.pieces] == [piece.macs for piece in known.pieces]
    programs = []
    for model, graph in ((whole, known), (shapes, found)):
        contract = make_contract(model, sampler="flow-euler" if name == "flux" else "ddim", steps=4)
        schedule = schedule_by_rule(graph, contract, SearchOptions("random", 0.5))
        programs.append(lower(schedule, graph, read_sampler(contract.sampler)))
    assert memory_bytes(programs[0], 2) == memory_bytes(programs[1], 2) and programs[0].macs == programs[1].macs


def test_nothing_is_cut_from_shapes(tmp_path):
    shapes = without_weights(tiny("dit"), tmp_path / "config")
    traced = trace(shapes, out=tmp_path / "trace")
    assert sorted(path.name for path in traced.folder.iterdir()) == [BLOCKS_FILE, "config.json"]
    with pytest.raises(InputError, match=r"has no master.onnx: trace the model again"):
        load_trace(traced.folder)
    schedule = schedule_by_rule(traced.blocks, make_contract(shapes, steps=4), SearchOptions("uniform", 0.5))
    with pytest.raises(InputError, match="DiTTransformer2DModel has shapes alone, a bundle needs its weights"):
        export(shapes, schedule, tmp_path / "bundle")


def test_stand_ins_take_no_memory_and_differ():
    def value(name: str, *shape: int) -> ir.Value:
        tensor = ir.Value(name=name, const_value=ir.tensor(np.zeros(1, np.float32)))
        meta = torch.zeros(*shape, dtype=torch.bfloat16, device="meta")
        from torch.onnx._internal.exporter._core import TorchTensor

        tensor.const_value = TorchTensor(meta, name=name)
        return tensor

    real = ir.Value(name="real", const_value=ir.tensor(np.ones(3, np.float32), name="real"))
    values = [value("a", 4), value("b", 4), value("large", 1 << 20, 1 << 20), real]
    graph = ir.Graph([], [], nodes=[], initializers=values)
    put_stand_ins(graph)
    a, b, large = (np.asarray(graph.initializers[name].const_value.numpy()) for name in ("a", "b", "large"))
    assert a.dtype == b.dtype == large.dtype and a.dtype.name == "bfloat16" and not np.array_equal(a, b)
    assert large.shape == (1 << 20, 1 << 20) and large.strides == (0, 0)
    assert np.array_equal(graph.initializers["real"].const_value.numpy(), np.ones(3))
