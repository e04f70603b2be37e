from __future__ import annotations

import pytest

from dipgo_deploy.bench import QUICK, BenchOptions
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.run_options import RunOptions


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch", 0),
        ("repeats", 1),
        ("images", 0),
        ("converged_images", -1),
        ("converged_calls", 0),
        ("tuning_images", 0),
        ("seed", -1),
    ],
)
def test_counts_that_are_too_small_are_refused(field: str, value: int) -> None:
    with pytest.raises(UsageError, match=f"{field} must be at least {value + 1}, got {value}"):
        BenchOptions(**{field: value})


def test_a_bench_without_converged_images_is_allowed() -> None:
    assert BenchOptions(converged_images=0).converged_images == 0


def test_the_document_keeps_the_run_options_next_to_the_sizes() -> None:
    settings = BenchOptions(run=RunOptions("torch", threads=3), command="dipgo-deploy bench b").document
    assert (settings["backend"], settings["device"], settings["threads"], settings["batch"]) == ("torch", "cpu", 3, 8)
    assert not {"run", "command"} & settings.keys()


def test_a_quick_bench_is_smaller_in_every_size_and_labelled() -> None:
    usual = BenchOptions()
    for size in ("repeats", "images", "converged_images", "converged_calls", "tuning_images"):
        assert getattr(QUICK, size) < getattr(usual, size)
    assert QUICK.document["quick"] and not usual.document["quick"]
