from __future__ import annotations

import pytest

from dipgo_deploy.bench import BenchOptions
from dipgo_deploy.core.errors import UsageError


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
def test_counts_that_make_no_sense_are_refused(field: str, value: int) -> None:
    with pytest.raises(UsageError, match=f"{field} {value} makes no sense"):
        BenchOptions(**{field: value})


def test_a_bench_without_converged_images_is_allowed() -> None:
    assert BenchOptions(converged_images=0).converged_images == 0
