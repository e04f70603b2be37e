"""What happens before engines are built: nothing, a search for fp32 fallback nodes, or one finite run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dipgo_deploy.core.errors import GateError, UsageError
from dipgo_deploy.core.precision import PrecisionRecord
from dipgo_deploy.core.progress import finish
from dipgo_deploy.engines import FallbackOptions
from dipgo_deploy.engines.build import build_bundle_engines
from dipgo_deploy.engines.precision import PrecisionStatus, check_finite, ensure_precision, precision_status
from dipgo_deploy.runtime.session import Session
from dipgo_deploy.trt.target import is_installed
from tests.engines.options import FLOAT32
from tests.models.families import tiny
from tests.runtime.bundles import few_graphs, planted

QUICK = FallbackOptions(images=1, steps=1)
LOOSE = replace(QUICK, tolerance=0.5)


def test_a_search_is_up_to_date_until_its_options_or_the_schedule_change(tmp_path: Path) -> None:
    model = tiny("dit")
    bundle = few_graphs(model, tmp_path / "bundle", shares=(1, 0))
    assert (
        precision_status(bundle, None, QUICK) == precision_status(bundle, "float32", QUICK) == PrecisionStatus("none")
    )
    assert precision_status(bundle, "float16", QUICK) == PrecisionStatus("search")
    record = finish(ensure_precision(bundle, "float16", QUICK))
    assert isinstance(record, PrecisionRecord)
    assert precision_status(bundle, "float16", QUICK) == PrecisionStatus("up to date", record)
    assert precision_status(bundle, "float16", LOOSE) == precision_status(bundle, "bfloat16", QUICK)
    assert precision_status(bundle, "float16", LOOSE) == PrecisionStatus("search")
    again = few_graphs(model, tmp_path / "bundle", shares=(1, 0.5))
    assert precision_status(again, "float16", QUICK) == PrecisionStatus("search")


def test_a_damaged_record_is_searched_again(tmp_path: Path) -> None:
    bundle = few_graphs(tiny("dit"), tmp_path / "bundle", shares=(1, 0))
    finish(ensure_precision(bundle, "float16", QUICK))
    (bundle.folder / "program.fp16.json").write_text("{}")
    assert precision_status(bundle, "float16", QUICK) == PrecisionStatus("search")
    finish(ensure_precision(bundle, "float16", QUICK))
    assert precision_status(bundle, "float16", QUICK).action == "up to date"


@pytest.mark.parametrize("dtype", ["float16", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_a_bundle_exported_in_half_precision_is_not_searched_and_finite(tmp_path: Path, dtype: str) -> None:
    bundle = few_graphs(tiny("dit"), tmp_path / "half", shares=(1, 0), dtype=dtype)
    assert precision_status(bundle, None, QUICK) == precision_status(bundle, dtype, QUICK) == PrecisionStatus("none")
    assert finish(ensure_precision(bundle, dtype, QUICK)) is None
    check_finite(bundle)


def test_a_bundle_in_half_precision_is_neither_converted_nor_given_a_tolerance(tmp_path: Path) -> None:
    bundle = few_graphs(tiny("dit"), tmp_path / "half", shares=(1, 0), dtype="float16")
    for other in ("bfloat16", "float32"):
        with pytest.raises(UsageError, match=f"the bundle is in float16, {other} is requested: export it in float32"):
            precision_status(bundle, other, QUICK)
    for own in (None, "float16"):
        with pytest.raises(UsageError, match="tolerance is for the search .* a bundle in float16 built in float16"):
            precision_status(bundle, own, LOOSE)


def test_numbers_that_are_not_finite_are_found_by_a_run(tmp_path: Path) -> None:
    """Float16 holds the weights of the planted convolution, but not its output."""
    bundle = few_graphs(planted(2e5), tmp_path / "half", shares=(1, 0), dtype="float16")
    with pytest.raises(GateError, match="exported in float16, gives numbers that are not finite: export it in float32"):
        check_finite(bundle)


@pytest.mark.skipif(not is_installed("tensorrt_rtx"), reason="needs TensorRT-RTX: pip install 'dipgo-deploy[rtx]'")
def test_the_finite_run_comes_before_a_build_and_only_before_a_build(tmp_path: Path, fake_builds, monkeypatch) -> None:
    bundle = few_graphs(tiny("dit"), tmp_path / "half", shares=(1, 0), dtype="float16")
    with monkeypatch.context() as patch:
        patch.setattr(Session, "run", lambda *_, **__: np.full(1, np.inf))
        with pytest.raises(GateError, match="not finite"):
            finish(build_bundle_engines(bundle, FLOAT32))
        assert fake_builds == []
        finish(build_bundle_engines(bundle, replace(FLOAT32, check_finite=False)))
    assert fake_builds == ["subnet_00"]
    texts: list[str] = []
    finish(build_bundle_engines(bundle, FLOAT32), lambda progress: texts.append(progress.text))
    assert texts == ["subnet_00 up to date"]
