"""The entry point of all methods: a model, a contract and options give a schedule.

1. A trained pruner (``from_pruner``) brings the options that it was trained with.
2. The model gets its prompts and is traced, unless its blocks are passed.
3. The method proposes a candidate, which becomes a checked schedule.
4. ``max_graphs`` unites compute sets until the schedule lowers to few enough graphs.
5. A ratio that is not reached gives a note with the range of ratios that the method reaches.
"""

from __future__ import annotations

import time
from dataclasses import replace

from dipgo_deploy.core.blocks import BlockGraph, fit_contract
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.progress import Progress, Work
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.graphs import trace
from dipgo_deploy.lowering import limit_graphs
from dipgo_deploy.models import LoadedModel, with_prompts
from dipgo_deploy.search.calibration import calibrate
from dipgo_deploy.search.candidate import Candidate
from dipgo_deploy.search.dipgo.options import DipgoOptions
from dipgo_deploy.search.dipgo.pruner_file import options_of_trained
from dipgo_deploy.search.evaluator import Evaluator
from dipgo_deploy.search.options import METHODS, NOTE, RULES, SearchOptions
from dipgo_deploy.search.problem import Problem, schedule_by_rule, schedule_of
from dipgo_deploy.search.reachable import out_of_reach, unmet_ratio

__all__ = ["search"]

_FIRST_SEED = DipgoOptions().first_seed
"""First seed of the images for evaluating schedules. A bench never uses these seeds: it draws its own noise."""


def search(
    model: LoadedModel,
    contract: Contract,
    options: SearchOptions = SearchOptions(),
    *,
    blocks: BlockGraph | None = None,
) -> Work[Schedule]:
    """Search a reuse schedule.

    Args:
        model: the model to prune. Rules do not need its weights.
        contract: sampler, steps and guidance that the schedule is made for.
        options: method, ratio and all other settings.
        blocks: the model's blocks, if known. Otherwise the model is traced, or its cached trace is read.

    Returns:
        A generator of Progress whose result is the schedule (see ``core.progress.finish``). ``origin`` of the schedule
        records ``method``, ``ratio`` (requested), ``reached``, ``seed`` and the method's own options. Methods that run
        the model add ``score_db``, ``search_cost`` (full trajectories of one image) and ``seconds``.

    Raises:
        UsageError: an option does not fit the model, or the method runs a model that has no weights.
        InputError: model, blocks, contract, latency table or pruner do not belong together.
    """
    if isinstance(options.settings, DipgoOptions) and options.settings.from_pruner is not None:
        options = options_of_trained(options, options.settings.from_pruner)
    if not model.has_weights and options.method not in RULES:
        raise UsageError(
            f"{options.method} runs the model, which was loaded without weights: load the weights, or choose "
            f"{', '.join(RULES)}"
        )
    if options.prompts:
        model = with_prompts(model, options.prompts)
        if model.class_embedder.note:
            yield Progress(NOTE, 0, 1, model.class_embedder.note)
    if blocks is None:
        yield Progress("trace", 0, 1)
        blocks = trace(model, granularity=options.granularity, patterns=options.patterns).blocks
    for name, reason in blocks.refused.items():
        yield Progress(NOTE, 0, 1, f"{name} is fixed at {blocks.sizes[name]}, because {reason}")
    contract = fit_contract(contract, blocks)
    schedule = yield from _schedule(Problem(model, blocks, contract, options))
    if options.max_graphs is not None:
        schedule = limit_graphs(schedule, blocks, options.max_graphs)
    if warning := unmet_ratio(schedule, blocks, options):
        yield Progress(NOTE, 1, 1, warning)
    return schedule


def _schedule(problem: Problem) -> Work[Schedule]:
    options, graph = problem.options, problem.graph
    if not METHODS[options.method].runs_model:
        return schedule_by_rule(graph, problem.contract, options)
    if warning := out_of_reach(graph, problem.contract.sampler.calls, options):
        yield Progress(NOTE, 0, 1, warning)
    return (yield from _with_model(problem))


def _with_model(problem: Problem) -> Work[Schedule]:
    """The schedule of a method that runs the model, with its time in ``origin``."""
    method, started = METHODS[problem.options.method], time.perf_counter()
    if method.needs == "evaluator":
        candidate = yield from _evaluated(problem)
    else:
        candidate = yield from method.load()(problem)
    # A method that continues earlier work records its own time.
    knobs = {"seconds": f"{time.perf_counter() - started:.1f}", **candidate.knobs}
    return schedule_of(replace(candidate, knobs=knobs), problem.graph, problem.contract, problem.options)


def _evaluated(problem: Problem) -> Work[Candidate]:
    """The candidate of a method that evaluates schedules by the images they make."""
    options, graph = problem.options, problem.graph
    yield Progress("full run", 0, 1)
    calibration = calibrate(
        problem.model, graph, problem.contract, range(_FIRST_SEED, _FIRST_SEED + options.image_count),
        classes=options.classes, guidance_scale=options.guidance_scale,
    )  # fmt: skip
    return (yield from evaluated(Evaluator(calibration, graph, options.kind, table=options.latency), options))


def evaluated(evaluator: Evaluator, options: SearchOptions) -> Work[Candidate]:
    """Run a method on an evaluator.

    Args:
        evaluator: gives the PSNR of schedules and counts their cost.
        options: options of the search. The method needs an evaluator.

    Returns:
        A generator of Progress whose result is the candidate, with ``score_db`` and ``search_cost`` among its knobs.
    """
    candidate: Candidate = yield from METHODS[options.method].load()(evaluator, options)
    knobs = {
        **candidate.knobs,
        "score_db": f"{evaluator.score(candidate.computed):.3f}",
        "search_cost": f"{evaluator.search_cost:.1f}",
    }
    return replace(candidate, knobs=knobs)
