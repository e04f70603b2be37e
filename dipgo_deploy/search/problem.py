"""Problem: the model, blocks and contract of one search with its options, checked against each other."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.latency import check_table
from dipgo_deploy.core.precision import is_half
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.models import LoadedModel
from dipgo_deploy.search.candidate import Candidate, schedule_from_sets
from dipgo_deploy.search.options import METHODS, RULES, SearchOptions

__all__ = ["Problem", "check_problem", "schedule_by_rule", "schedule_of"]


@dataclass(frozen=True)
class Problem:
    """One search: ``model`` with its blocks ``graph``, sampled under ``contract``, and the search options."""

    model: LoadedModel
    graph: BlockGraph
    contract: Contract
    options: SearchOptions

    def __post_init__(self) -> None:
        """Check that the parts belong together, with ``check_problem``."""
        check_problem(self.graph, self.contract, self.options)


def check_problem(graph: BlockGraph, contract: Contract, options: SearchOptions) -> None:
    """Check that blocks, contract and options belong together.

    Args:
        graph: blocks of the model.
        contract: sampler, steps and guidance.
        options: options of the search.

    Raises:
        InputError: graph, contract or latency table describe different models, or no block has a residual to reuse.
    """
    for name in ("model_class", "model_digest"):
        ours, theirs = getattr(graph, name), getattr(contract, name)
        if ours != theirs:
            raise InputError(
                f"the blocks were traced from {name} {ours[:40]}, but the contract names {theirs[:40]}: trace that "
                "model"
            )
    if options.latency is not None:
        # A table of half precision prices the float32 graph that the half-precision graph was converted from.
        converted = graph.dtype == "float32" and is_half(options.latency.dtype)
        check_table(options.latency, replace(graph, dtype=options.latency.dtype) if converted else graph)
    if options.kind == "residual" and all(block.residual_input is None for block in graph.blocks):
        raise InputError(
            f"no block of {graph.model_class} at granularity {graph.granularity} has one input of its output's shape, "
            "so there is no residual to reuse: choose kind output"
        )


def schedule_of(candidate: Candidate, graph: BlockGraph, contract: Contract, options: SearchOptions) -> Schedule:
    """Make the checked schedule of a candidate. ``origin`` records method, ratio, seed and the candidate's knobs."""
    ratio_sought = options.settings is None or not options.settings.decides_ratio
    origin = {
        "method": options.method,
        **({"ratio": f"{options.ratio:g}"} if ratio_sought else {}),
        "reached": f"{candidate.ratio:.4f}",
        "seed": str(options.seed),
        **({"latency": options.latency.target} if options.latency else {}),
        **candidate.knobs,
    }
    if candidate.sampler is not None:
        contract = replace(contract, sampler=candidate.sampler)
    return schedule_from_sets(graph, contract, options.kind, candidate.computed, origin)


def schedule_by_rule(graph: BlockGraph, contract: Contract, options: SearchOptions) -> Schedule:
    """Make a schedule by a rule. Rules need the block graph alone: neither a model nor progress.

    Args:
        graph: blocks of the model.
        contract: sampler, steps and guidance.
        options: options of the search. The method is one of RULES.

    Returns:
        The schedule whose ratio is nearest to the requested ratio. A ratio out of reach is not an error.

    Raises:
        UsageError: the method runs the model, or one of its options does not fit this model.
        InputError: graph, contract or latency table describe different models, or no block has a residual to reuse.
    """
    method = METHODS[options.method]
    if method.runs_model:
        raise UsageError(f"method {options.method} needs a model: pass a model, or choose {', '.join(RULES)}")
    check_problem(graph, contract, options)
    candidate = method.load()(graph, contract.sampler.calls, options)
    return schedule_of(candidate, graph, contract, options)
