"""Real engines by TensorRT for RTX, which builds without a GPU, from bundles of the reference models and tiny families.

Six cells cover every pair of layout, batch and precision, and every family. The full matrix is slow.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from dipgo_deploy.bundle import Bundle
from dipgo_deploy.core.precision import HalfType
from dipgo_deploy.core.progress import finish
from dipgo_deploy.engines import EngineReport, PlanOptions, build_bundle_engines, plan
from dipgo_deploy.engines.estimate import dry_run
from dipgo_deploy.models import LoadedModel, load_model
from dipgo_deploy.trt.job import BuildFlags
from tests.engines.options import FP16
from tests.models.families import tiny
from tests.runtime.bundles import few_graphs

pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install 'dipgo-deploy[rtx]'")
pytestmark = pytest.mark.tensorrt

Cell = tuple[str, str, bool, HalfType | None]
"""Model, layout, whether the batch is fixed, precision."""

CELLS: tuple[Cell, ...] = (
    ("digits-unet", "segments", True, "float16"),
    ("sd", "subnets", True, None),
    ("pixart-alpha", "segments", False, None),
    ("digits-dit", "subnets", False, "bfloat16"),
    ("sdxl", "segments", True, "bfloat16"),
)
"""With the shared bundle (a DiT in float16, SubNets, 1 to 8 images) every pair of values occurs."""

MODELS = ("digits-unet", "digits-dit", "sd", "sdxl", "dit", "pixart-alpha")
MATRIX = [
    *product(MODELS, ("subnets", "segments"), (False, True), ("float16",)),
    *product(("dit",), ("subnets", "segments"), (False, True), ("bfloat16", None)),
]


@cache
def model_of(name: str) -> LoadedModel:
    return load_model(name) if name.startswith("digits") else tiny(name)


@pytest.mark.parametrize("cell", CELLS)
def test_every_graph_becomes_an_engine(cell: Cell, tmp_path: Path, engine_store: Path) -> None:
    check_cell(cell, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("cell", [cell for cell in MATRIX if cell not in CELLS])
def test_every_graph_becomes_an_engine_in_the_full_matrix(cell: Cell, tmp_path: Path, engine_store: Path) -> None:
    check_cell(cell, tmp_path)


def check_cell(cell: Cell, folder: Path) -> None:
    name, layout, static, precision = cell
    bundle = few_graphs(model_of(name), folder / "bundle", layout)
    options = replace(FP16, precision=precision, flags=BuildFlags(static=static))
    estimate = dry_run(bundle, options)
    assert estimate.searches == (precision is not None)
    report = finish(build_bundle_engines(bundle, options))
    check_types(bundle, report, precision or "float32")
    check_shapes(bundle, report, static)
    layout_plan = next(p for p in plan(bundle, PlanOptions(precision=precision)).layouts if p.layout == layout)
    weights = sum(record.weight_bytes for record in report.records)
    assert layout_plan.weight_bytes == pytest.approx(weights, rel=0.01)
    estimated = sum(engine.engine_bytes for engine in estimate.engines)
    assert layout_plan.engine_bytes == pytest.approx(estimated, rel=0.01)
    if name.startswith("digits"):
        built = sum(record.bytes for record in report.records)
        assert 0.5 < estimated / built < 2 and estimated > weights


def check_types(bundle: Bundle, report: EngineReport, precision: str) -> None:
    """Every graph has an engine whose inputs and outputs, read back from the network, have the precision."""
    graphs = bundle.program.graph_of_name
    assert len(graphs) >= 2 and [record.graph for record in report.records] == sorted(graphs)
    assert report.counts == {"up to date": 0, "copied": 0, "built": len(graphs)}
    for record in report.records:
        floats = {tensor: io.dtype for tensor, io in record.io.items() if io.dtype not in ("int64", "bool")}
        assert {dtype for tensor, dtype in floats.items() if tensor != "timestep"} <= {precision}
        assert floats.get("timestep", "float32") == "float32" and record.precision == precision
        assert set(record.io) >= {*graphs[record.graph].reads, *graphs[record.graph].writes}
        assert record.activation_bytes is not None and record.activation_bytes > 0
    if bundle.program.layout == "segments":
        weights = sum(record.weight_bytes for record in report.records)
        assert weights <= 1.05 * bundle.manifest.model_weight_bytes / (1 if precision == "float32" else 2)


def check_shapes(bundle: Bundle, report: EngineReport, static: bool) -> None:
    contract, values = bundle.contract, bundle.blocks.values
    rows, usual = contract.rows_per_image, contract.sizes(4)
    inputs = {spec.name for spec in bundle.blocks.inputs}
    for record in report.records:
        shapes = {tensor: io.shape for tensor, io in record.io.items() if tensor in inputs}
        for tensor, shape in shapes.items():
            free = tuple(-1 if isinstance(dim, str) else dim for dim in values[tensor].shape)
            assert shape == (values[tensor].resolve(usual) if static else free)
        for tensor in () if static else shapes:
            profile = record.profile[tensor]
            assert [profile.min[0], profile.opt[0], profile.max[0]] == [rows, 4 * rows, 8 * rows]
            if tensor == "encoder_hidden_states" and contract.tokens is not None and not contract.tokens.is_fixed:
                assert [profile.min[1], profile.opt[1], profile.max[1]] == [1, 7, 1024]
        assert not (static and record.profile)


def test_the_shared_bundle_has_engines_of_its_precision_and_batch(built_bundle: Bundle) -> None:
    report = finish(build_bundle_engines(built_bundle, FP16))
    fresh = replace(report, engines=tuple(replace(engine, status="built") for engine in report.engines))
    check_types(built_bundle, fresh, "float16")
    check_shapes(built_bundle, report, static=False)


def test_a_bundle_exported_in_half_precision_is_built_as_it_is(tmp_path: Path, engine_store: Path) -> None:
    bundle = few_graphs(model_of("dit"), tmp_path / "half", shares=(1, 0), dtype="float16")
    assert not dry_run(bundle, FP16).searches
    shown: list[str] = []
    report = finish(build_bundle_engines(bundle, FP16), lambda progress: shown.append(progress.text))
    assert shown == ["running the schedule once", "subnet_00 built"]
    (record,) = report.records
    assert report.precision is None and record.precision == "float16"
    assert {io.dtype for io in record.io.values()} <= {"float16", "float32", "int64"}
    assert not list(bundle.folder.rglob("*.fp16.*"))
