from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dipgo_deploy.core.errors import GateError, InputError, MissingError, UsageError
from dipgo_deploy.core.files import load_schedule
from dipgo_deploy.core.progress import Work
from dipgo_deploy.recipes import bundle_calls, model_calls
from tests.recipes.recipes import TINY, lines, run_tiny, work_of

RULE = TINY.replace('"dipgo"', '"fora"').replace("iterations = 12\npolish = 0\nimages = 2\n", "")
"""The same recipe without a training."""

STAGES = ["trace", "search", "search uniform", "export", "export uniform"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that was never interrupted, up to its bench. Not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    assert set(lines(run_tiny(folder, until=None)).values()) == {"starts"}
    return folder


def contents(out: Path) -> dict[str, object]:
    """Every file of the schedules and bundles, without the seconds that a search took."""
    found: dict[str, object] = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.suffix in (".onnx", ".safetensors") or name.endswith((".blocks.json", "program.json")):
            found[name] = path.read_bytes()
        elif path.name in ("dipgo.json", "uniform.json", "schedule.json"):
            schedule = load_schedule(path)
            found[name] = (schedule.contract, schedule.compute)
    return found


def test_a_run_goes_from_trace_to_bench_and_the_next_one_does_nothing(whole, monkeypatch):
    monkeypatch.setattr(model_calls, "load_model", lambda section: pytest.fail("nothing needs the model"))
    seen = lines(run_tiny(whole, until=None))
    assert list(seen) == [*STAGES, "verify", "verify uniform", "bench"]
    assert set(seen.values()) == {"up to date"}
    report = json.loads((whole / "out" / "bench.json").read_text())
    assert {"dipgo", "uniform"} <= {row["name"] for row in report["rows"]}


def interrupted(work: Work, stage: str, text: str = "") -> None:
    """Stop ``work`` as a signal does, at the first Progress of ``stage`` that holds ``text``."""
    for progress in work:
        if progress.stage == stage and text in progress.text:
            work.close()
            return
    pytest.fail(f"the run never came to {stage}")


RESTARTED = "was interrupted, starts again"
POINTS = {
    "within-the-training": (
        "search / training",
        "",
        {"trace": "up to date", "search": "resumed at iteration 10 of 12"},
    ),
    "between-stages": ("search uniform", "starts", {"search": "up to date", "search uniform": RESTARTED}),
    "within-the-export": ("export / cutting graphs", "", {"search uniform": "up to date", "export": RESTARTED}),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_run_that_is_killed_and_run_again_ends_with_the_same_files(whole, tmp_path, point):
    stage, text, expected = POINTS[point]
    work = work_of(tmp_path)
    if point == "within-the-training":
        count = 0
        for progress in work:
            count += progress.stage == stage
            if count == 11:  # the pruner is written after every 10 iterations
                work.close()
                break
    else:
        interrupted(work, stage, text)
    again = lines(run_tiny(tmp_path))
    assert list(again) == STAGES and expected.items() <= again.items()
    assert contents(tmp_path / "out") == contents(whole / "out")
    assert set(lines(run_tiny(tmp_path)).values()) == {"up to date"}


def test_a_process_that_dies_within_the_export_leaves_nothing_that_counts_as_done(tmp_path, monkeypatch):
    def die(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bundle_calls, "export", die)
        with pytest.raises(KeyboardInterrupt):
            run_tiny(tmp_path, text=RULE)
    again = lines(run_tiny(tmp_path, text=RULE))
    assert again["export"] == RESTARTED and again["search"] == "up to date"


@pytest.fixture
def exported(tmp_path) -> Path:
    """A run of rules up to the export, which takes no training."""
    run_tiny(tmp_path, text=RULE)
    return tmp_path


def again(folder: Path, *overrides: str, **options) -> dict[str, str]:
    """The stages that did not stand as they were."""
    found = lines(run_tiny(folder, *overrides, text=RULE, **options))
    return {stage: text for stage, text in found.items() if text != "up to date"}


def test_a_changed_key_runs_the_stages_that_read_it_and_what_follows(exported):
    assert again(exported, "search.ratio=0.3") == {
        "search": "inputs changed (search.ratio)",
        "export": "inputs changed (fora.json)",
    }
    assert set(again(exported, "search.ratio=0.3", "export.layout=segments")) == {"export", "export uniform"}
    assert again(exported, "search.ratio=0.3", "export.layout=segments", "sampler.steps=5") == {
        "search": "inputs changed (sampler.steps)",
        "search uniform": "inputs changed (sampler.steps)",
        "export": "inputs changed (fora.json)",
        "export uniform": "inputs changed (uniform.json)",
    }


@pytest.mark.parametrize(
    "name", ["stage.blocks.json", "fora.json", "fora/bundle.json", "fora/unet", "fora/program.json"]
)
def test_an_output_that_is_edited_or_deleted_is_made_again(exported, name):
    before = contents(exported / "out")
    path = exported / "out" / name
    if path.is_dir():
        path = next(path.glob("*.onnx"))
        path.write_bytes(path.read_bytes() + b"\0")
    elif name == "fora.json":
        path.write_text(path.read_text().replace("1", "0"))
    else:
        path.unlink()
    stage = {"stage.blocks.json": "trace", "fora.json": "search"}.get(name, "export")
    assert again(exported)[stage].startswith("output changed or deleted (")
    assert contents(exported / "out") == before and again(exported) == {}


def test_a_file_that_was_only_touched_does_not_run_its_stage(exported):
    os.utime(exported / "out" / "fora.json", (1, 1))
    assert again(exported) == {}


def test_other_training_keys_drop_the_pruner_and_another_ratio_keeps_it(whole, tmp_path):
    text = TINY.replace('[contenders.uniform]\nmethod = "uniform"\nratio = 0.5\n', "")
    run_tiny(tmp_path, until="search", text=text)
    trained = (tmp_path / "out" / "dipgo.pruner").read_bytes()
    steps = run_tiny(tmp_path, "search.ratio=0.4", until="search", text=text)
    assert lines(steps)["search"] == "inputs changed (search.ratio)"
    assert not [step for step in steps if step.stage == "search / training"]
    steps = run_tiny(tmp_path, "search.seed=1", until="search", text=text)
    assert len([step for step in steps if step.stage == "search / training"]) == 12
    assert (tmp_path / "out" / "dipgo.pruner").read_bytes() != trained


def test_a_budget_of_calls_is_the_ratio_that_leaves_so_many(exported):
    again(exported, "search.calls=3")
    assert load_schedule(exported / "out" / "fora.json").origin["ratio"] == "0.5"
    with pytest.raises(UsageError, match="search.calls is 7, the full run makes 6 calls"):
        again(exported, "search.calls=7")


def test_a_stage_can_be_forced_and_must_be_known(exported):
    assert again(exported, force=["export"]) == {"export": "forced", "export uniform": "forced"}
    for options in ({"force": ["cut"]}, {"until": "cut"}):
        with pytest.raises(UsageError, match="stage 'cut' is unknown: choose trace, search, export, build-engine"):
            again(exported, **options)


def test_keys_that_do_not_fit_the_method_are_refused_before_anything_runs(tmp_path):
    with pytest.raises(UsageError, match="search: iterations does not belong to method fora"):
        run_tiny(tmp_path, "search.iterations=3", text=RULE)
    assert not (tmp_path / "out").exists()


TARGET = RULE + '[targets.rtx]\ngpus = ["sm89"]\n'


def test_a_target_that_cannot_be_built_ends_the_run_before_it_starts_unless_it_is_optional(tmp_path, monkeypatch):
    def refuse(name: str, section: object) -> str:
        raise MissingError("no GPU to build for: run on a machine that has one")

    monkeypatch.setattr(bundle_calls, "check_target", refuse)
    with pytest.raises(MissingError, match="targets.rtx: no GPU .* or set targets.rtx.optional to true"):
        run_tiny(tmp_path, text=TARGET, until="build-engine")
    assert not (tmp_path / "out").exists()
    run_tiny(tmp_path, text=TARGET)  # up to the export: no target is asked for
    found = lines(run_tiny(tmp_path, "targets.rtx.optional=true", text=TARGET, until="build-engine"))
    assert found["build-engine rtx"] == "skipped (no GPU to build for: run on a machine that has one)"


def test_engines_are_built_for_every_schedule_that_is_benched_and_do_not_make_the_export_run_again(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    overrides = ("contenders.uniform.bench=false",)
    seen = lines(run_tiny(tmp_path, *overrides, text=TARGET, until="build-engine"))
    assert [stage for stage in seen if stage.startswith("build-engine")] == ["build-engine rtx"]
    assert set(lines(run_tiny(tmp_path, *overrides, text=TARGET, until="build-engine")).values()) == {"up to date"}
    engine = next((tmp_path / "out" / "fora").glob("*/engines/*/*.engine"))
    engine.unlink()
    seen = lines(run_tiny(tmp_path, *overrides, text=TARGET, until="build-engine"))
    assert seen["export"] == "up to date" and engine.name in seen["build-engine rtx"] and engine.is_file()


def test_a_verification_that_fails_ends_the_run_and_runs_again(exported):
    for _ in range(2):
        with pytest.raises(GateError, match="verify: .*min_psnr_db is 99"):
            again(exported, "verify.min_psnr_db=99", until="verify")
    assert not json.loads((exported / "out" / "fora.verify.json").read_text())["passed"]


def test_two_runs_do_not_write_to_one_folder(tmp_path):
    first = work_of(tmp_path, text=RULE)
    next(first)
    with pytest.raises(InputError, match="another run writes to"):
        run_tiny(tmp_path, text=RULE)
    first.close()


@pytest.mark.parametrize("name", ["fora", "fora.json", "bench.png", "stage.blocks.json"])
def test_files_and_folders_that_no_run_made_are_not_replaced(tmp_path, name):
    own = tmp_path / "out" / name
    own.mkdir(parents=True)
    (own / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=f"{name} was not made by a run in .*: choose another out folder, or move"):
        run_tiny(tmp_path, text=RULE, until=None)
    assert (own / "thesis.txt").read_text() == "years of work"
