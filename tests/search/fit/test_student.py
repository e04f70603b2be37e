"""The closed form: it recovers a known linear sampler, shares network calls between trials, and solves with a ridge."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.progress import finish
from dipgo_deploy.models import make_contract, sampler_spec
from dipgo_deploy.models.sampler_coefficients import read_sampler
from dipgo_deploy.search.fit import teacher as module
from dipgo_deploy.search.fit.moves import improve_times
from dipgo_deploy.search.fit.student import Student, Times, solve
from dipgo_deploy.search.fit.teacher import Images, record_teacher, teacher_spec

CALLS = 4


@pytest.fixture(scope="module")
def images(digits_unet) -> Images:
    seeds = tuple(range(100, 106))
    return Images(digits_unet, make_contract(digits_unet, guidance="concat"), seeds, seeds_to_labels(seeds), 2.0)


def seeds_to_labels(seeds: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(seed % 10 for seed in seeds)


@pytest.fixture(scope="module")
def plain_teacher(images):
    """DDIM with as many calls as the student: the student can be exactly this sampler."""
    config = images.model.scheduler_config
    return finish(record_teacher(images, sampler_spec("ddim", CALLS, config, {"timestep_spacing": "trailing"})))


def test_the_closed_form_recovers_a_known_linear_sampler(plain_teacher) -> None:
    trial = Student(plain_teacher, 3, memory=1, ridge=0.0).fit(Times.coupled(plain_teacher.times))
    expected = read_sampler(plain_teacher.spec)
    for row, update in zip(trial.rows, expected.updates, strict=True):
        assert row.state == pytest.approx(update.latents[0], abs=1e-4)
        assert row.outputs[0] == pytest.approx(update.outputs[0], abs=1e-4)
    assert trial.score > 90.0  # float32 states


def test_trials_share_what_does_not_depend_on_the_changed_times(plain_teacher) -> None:
    student = Student(plain_teacher, 3, memory=CALLS, ridge=1e-6)
    times = Times.coupled(plain_teacher.times)
    first = student.fit(times)
    before = student.network_calls
    moved = replace(times, network=(*times.network[:3], times.network[3] - 5.0))
    second = student.fit(moved, first)
    assert student.network_calls - before == len(plain_teacher.noise)
    moved_state = Times((*times.states[:3], times.states[3] - 5.0), moved.network)
    third = student.fit(moved_state, first)
    for trial, at in ((second, moved), (third, moved_state)):
        alone = Student(plain_teacher, 3, memory=CALLS, ridge=1e-6).fit(at)
        assert trial.rows == alone.rows and trial.score == alone.score


def test_moving_times_improves_held_out_images(images) -> None:
    spec = sampler_spec("unipc", 12, images.model.scheduler_config, {"use_karras_sigmas": True})
    teacher = finish(record_teacher(images, spec))
    student = Student(teacher, 3, memory=3, ridge=1e-6)
    start = student.fit(Times.coupled((999.0, 600.0, 200.0)))
    best = finish(improve_times(student, start, 1))
    assert best.score > start.score + 0.5 and best.times != start.times
    assert best.score == pytest.approx(float(np.mean(student.held_out(best.states[-1]))))


def test_states_between_recorded_times_are_interpolated(images) -> None:
    config = images.model.scheduler_config
    fine = finish(record_teacher(images.part(0, 2), sampler_spec("ddim", 100, config)))
    every_other = replace(fine, times=fine.times[::2], states=fine.states[::2])
    for index in (1, 31, 77):
        between, known = every_other.at(fine.times[index]), fine.states[index]
        assert (between - known).abs().max() < 2e-3 * known.abs().max()
        torch.testing.assert_close(fine.at(fine.times[index]), known, rtol=0, atol=1e-6)


def test_a_ridge_keeps_equal_columns_apart() -> None:
    rng = torch.Generator().manual_seed(0)
    column, target = torch.randn(2, 50, generator=rng, dtype=torch.float64)
    shares = solve(torch.stack([column, 3 * column]), target, 1e-6)
    assert shares[0] == pytest.approx(3 * shares[1], rel=1e-3)
    best = float(column @ target / (column @ column))
    assert shares[0] + 3 * shares[1] == pytest.approx(best, rel=1e-5)


def test_recordings_are_read_back_and_continue(images, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DIPGO_CACHE", str(tmp_path))
    spec = sampler_spec("ddim", 3, images.model.scheduler_config)
    few = replace(images, seeds=tuple(range(500, 510)), labels=tuple(range(10)))
    runs = []
    original = module.run_teacher
    monkeypatch.setattr(module, "run_teacher", lambda *arguments: runs.append(1) or original(*arguments))
    work = record_teacher(few, spec)
    next(work), next(work)
    work.close()  # interrupted after the first of two chunks
    first = finish(record_teacher(few, spec))
    again = finish(record_teacher(few, spec))
    assert len(runs) == 2 and torch.equal(first.states, again.states) and len(first.images) == 10
    for file in (tmp_path / "teachers").glob("*.safetensors"):
        file.write_bytes(b"damaged")
    assert torch.equal(finish(record_teacher(few, spec)).images, first.images) and len(runs) == 4


def test_a_teacher_that_draws_noise_is_refused(images) -> None:
    noisy = replace(images.contract, sampler=sampler_spec("euler-a", 5, images.model.scheduler_config))
    with pytest.raises(UsageError, match="no function of the first noise: choose teacher converged"):
        finish(teacher_spec(replace(images, contract=noisy), "full"))
