"""What `search` does between its command line and its result: one way for rules, one for judges, one for gradients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dipgo_deploy.cli.output import say, working
from dipgo_deploy.cli.progress import watched
from dipgo_deploy.core.disk import check_target
from dipgo_deploy.core.errors import InputError, UsageError

if TYPE_CHECKING:
    from dipgo_deploy.cli.asked import Asked
    from dipgo_deploy.cli.conditions import Conditions
    from dipgo_deploy.core.blocks import BlockGraph
    from dipgo_deploy.core.contract import Contract
    from dipgo_deploy.core.schedule import Schedule
    from dipgo_deploy.models import LoadedModel
    from dipgo_deploy.search.dipgo.options import DipgoOptions
    from dipgo_deploy.search.dipgo.search import GradientSearch

__all__ = ["search_asked"]


def search_asked(asked: Asked) -> tuple[Schedule, BlockGraph]:
    """Search, with progress on stderr."""
    from dipgo_deploy.graphs import trace
    from dipgo_deploy.models import make_contract
    from dipgo_deploy.search.options import RULES

    conditions = _conditions(asked)
    with working(f"tracing {asked.source.label}"):
        model = conditions.given_to(asked.source.load())
        if not model.has_weights and asked.options.method not in RULES:
            raise UsageError(
                f"{asked.options.method} runs the model, which has shapes alone: choose {', '.join(RULES)}"
            )
        contract = make_contract(model, sampler=asked.sampler, steps=asked.steps, guidance=asked.guidance)
        graph = trace(model, granularity=asked.granularity, patterns=asked.patterns).blocks
    if asked.options.method == "dipgo":
        schedule = _by_gradient(asked, conditions, model, graph, contract)
    elif asked.options.method in JUDGED:
        schedule = _by_judge(asked, conditions, model, graph, contract)
    else:
        schedule = _by_rule(asked, graph, contract)
    if asked.limit_graphs is not None:
        from dipgo_deploy.lowering import limit_graphs

        schedule = limit_graphs(schedule, graph, asked.limit_graphs)
    if asked.picture is not None and asked.options.method != "dipgo":
        from dipgo_deploy.bench.pictures import schedule_picture

        schedule_picture(schedule, asked.picture, graph)
    return schedule, graph


def _conditions(asked: Asked) -> Conditions:
    """What images are searched on: as the pruner that is cut was trained on, else as the file says."""
    from dipgo_deploy.cli.conditions import Conditions, read_conditions

    if asked.gradient.from_pruner is None:
        return read_conditions(asked.conditions)
    from dipgo_deploy.search.dipgo.pruner_file import read_record

    options = read_record(asked.gradient.from_pruner).options
    return Conditions(options.classes, options.prompts)


def _by_rule(asked: Asked, graph: BlockGraph, contract: Contract) -> Schedule:
    from dipgo_deploy.search import schedule_by_rule

    return schedule_by_rule(graph, contract, asked.options)


def _by_judge(
    asked: Asked, conditions: Conditions, model: LoadedModel, graph: BlockGraph, contract: Contract
) -> Schedule:
    from dipgo_deploy.core.schedule import Schedule
    from dipgo_deploy.search.calibration import calibrate
    from dipgo_deploy.search.dipgo.options import DipgoOptions
    from dipgo_deploy.search.judged import search_with_model

    with working("running the full model"):
        usual = DipgoOptions()
        first, images = usual.first_seed, asked.images or usual.polish_images
        judge = Judge(
            calibrate(
                model, graph, contract, range(first, first + images),
                classes=conditions.classes, guidance_scale=asked.guidance_scale,
            ),
            graph,
            asked.options.kind,
            table=asked.options.cost,
        )  # fmt: skip

    def read(step: Any) -> tuple[float, str] | None:
        if isinstance(step, Schedule):
            return None
        best = "" if step.best_db is None else f"best {step.best_db:.2f} dB, "
        return step.done / max(step.total, 1e-9), f"{best}{step.spent:.0f} trajectories"

    found = watched(search_with_model(judge, asked.options), read, f"searching by {asked.options.method}")
    if not isinstance(found, Schedule):
        raise AssertionError("a search ends in its schedule")
    return found


def _by_gradient(
    asked: Asked, conditions: Conditions, model: LoadedModel, graph: BlockGraph, contract: Contract
) -> Schedule:
    from dipgo_deploy.core.schedule import Schedule

    search, known = _gradient_search(asked, conditions, model, graph, contract)
    begun, total = search.training.done, search.training.options.iterations
    if begun:
        say(f"continuing {known} after {begun} of {total} iterations")
    if begun < total:
        say(search.training.objective.memory.text)
    found = watched(search.search(asked.options.ratio, asked.gradient.order), _Readings(search).read, "searching")
    if not isinstance(found, Schedule):
        raise AssertionError("a search ends in its schedule")
    if asked.picture is not None:
        from dipgo_deploy.bench.pictures import schedule_picture

        schedule_picture(found, asked.picture, graph, search.training.scores())
    return found


def _gradient_search(
    asked: Asked, conditions: Conditions, model: LoadedModel, graph: BlockGraph, contract: Contract
) -> tuple[GradientSearch, Path]:
    from dipgo_deploy.search.dipgo.pruner_file import read_record
    from dipgo_deploy.search.dipgo.search import GradientSearch

    gradient = asked.gradient
    if gradient.from_pruner is not None:
        record = read_record(gradient.from_pruner)
        if record.done < record.options.iterations:
            raise InputError(
                f"{gradient.from_pruner} stopped after {record.done} of {record.options.iterations} iterations: finish "
                "it with --pruner"
            )
        images = asked.images or record.options.polish_images
        options = replace(record.options, polish=gradient.polish or 0, polish_images=images)
        file = gradient.from_pruner
    else:
        options, file = _gradient_options(asked, conditions), gradient.pruner or asked.out.with_suffix(".pruner")
        check_target(file)
    return GradientSearch(model, graph, contract, asked.options.kind, options, file, asked.options.cost), file


def _gradient_options(asked: Asked, conditions: Conditions) -> DipgoOptions:
    from dipgo_deploy.search.dipgo.options import PRESETS

    gradient = asked.gradient
    options = PRESETS[gradient.preset]
    changed: dict[str, Any] = {
        "iterations": gradient.iterations,
        "polish": gradient.polish,
        "polish_images": asked.images,
    }
    return replace(
        options,
        seed=asked.options.seed,
        prompts=conditions.prompts,
        classes=conditions.classes,
        guidance_scale=asked.guidance_scale,
        cost_table=asked.options.cost.digest if asked.options.cost else "",
        **{name: value for name, value in changed.items() if value is not None},
    )


class _Readings:
    """Iterations of training and better schedules of the polish as one line of progress."""

    def __init__(self, search: GradientSearch) -> None:
        self._polish = search.training.options.polish

    def read(self, step: Any) -> tuple[float, str] | None:
        from dipgo_deploy.search.dipgo.polish import Polished
        from dipgo_deploy.search.dipgo.training import Iteration

        if isinstance(step, Iteration):
            line = f"loss {step.consistency:.3f}, cost {step.cost:.4f}, kept {step.kept:.0%}"
            return step.done / step.total, f"training {step.done}/{step.total}: {line}"
        if isinstance(step, Polished):
            return min(1.0, step.spent / max(self._polish, 1)), f"polish: {step.score_db:.2f} dB"
        return None
