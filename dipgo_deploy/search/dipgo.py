"""The gradient search as a whole: train a pruner, cut its scores at the asked ratio, polish what comes out.

Stages meet in the pruner's file: a search that was interrupted at any point and is run again gives the same schedule.
Training counts iterations and polish counts trajectories, never seconds, so that it does so on any machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from dipgo_deploy.core.blocks import BlockGraph, Kind
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.latency import LatencyTable
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.models import LoadedModel
from dipgo_deploy.search.calibration import Judge, calibrate
from dipgo_deploy.search.candidate import Candidate, mask_from_sets, schedule_from_sets, sets_from_mask
from dipgo_deploy.search.cost import GateCost
from dipgo_deploy.search.dipgo_options import DipgoOptions
from dipgo_deploy.search.objective import Objective
from dipgo_deploy.search.options import TOLERANCE, SearchOptions
from dipgo_deploy.search.panel import Panel
from dipgo_deploy.search.polish import Polished, PolishOptions, polish
from dipgo_deploy.search.pruner_file import load_training, save_training
from dipgo_deploy.search.rules import uniform
from dipgo_deploy.search.search import check_model
from dipgo_deploy.search.threshold import Order, candidate_of_ratio, mask_of_ratio, sets_of
from dipgo_deploy.search.training import Iteration, Training

__all__ = ["GradientSearch"]

_JUDGED_SEED = 5_000_000
"""Distance of the seeds of images that judge exchanges from those that the pruner was trained on."""
_SAVE_EVERY = 10
_SCREEN = 3
"""One in so many of the images that judge exchanges sees them first, and proposes them by its gradient."""
_STATES = 12
"""Most states that a judge keeps of the schedule that is exchanged from."""


class GradientSearch:
    """DiP-GO's search for one model, contract and kind of reuse.

    Args:
        model: the network to prune.
        graph: its blocks.
        contract: sampler, steps and guidance.
        kind: what a reused block stands for.
        options: see DipgoOptions.
        file: where the pruner is kept; an existing one is continued. None keeps it in memory.
        table: latencies that ratios and costs are counted in; MACs if not given.

    Raises InputError where graph and contract describe different models, or ``file`` belongs to another search.
    """

    def __init__(
        self,
        model: LoadedModel,
        graph: BlockGraph,
        contract: Contract,
        kind: Kind,
        options: DipgoOptions,
        file: Path | None = None,
        table: LatencyTable | None = None,
    ) -> None:
        check_model(graph, contract, SearchOptions("uniform", 0.0, kind=kind, cost=table))
        self.training, self.file = Training(model, graph, contract, kind, options, table), file
        if file is not None and file.exists():
            load_training(file, self.training)

    def train(self) -> Iterator[Iteration]:
        """The iterations that are left; the file is written every few of them and after the last."""
        training = self.training
        for iteration in training.run():
            if self.file is not None and (training.done % _SAVE_EVERY == 0 or iteration.done == iteration.total):
                save_training(self.file, training)
            yield iteration

    def candidate(self, ratio: float, order: Order = "bisection") -> Candidate:
        """The compute sets of ``ratio`` by the pruner's scores, without running the model."""
        if not 0 <= ratio < 1:
            raise UsageError(f"ratio {ratio} is not in [0, 1): give the share of MACs to prune, such as 0.8")
        return candidate_of_ratio(self.training.scores(), self.training.graph, self.training.pricer, ratio, order)

    def polish(self, ratio: float, order: Order = "bisection") -> Iterator[Polished]:
        """Exchanges from the pruner's candidate, or from evenly spread steps if they are better and prune enough."""
        training, options = self.training, self.training.options
        objective = Objective(training.model, training.graph, training.contract, training.kind, options)
        cost = GateCost(training.pricer, training.graph, "marginal")
        panel = self._panel(options)
        proposing = panel.judges[0].calibration
        even = uniform(
            training.graph, training.contract.sampler.calls, SearchOptions("uniform", ratio, cost=training.table)
        )
        starts = [self._affordable(ratio, order), *([even] if even.ratio >= ratio - TOLERANCE else [])]
        best = max(starts, key=lambda candidate: panel.psnr_db(candidate.computed).mean())
        found = polish(
            mask_from_sets(best.computed, training.graph.block_names), ratio, panel, cost,
            lambda mask: objective.gradient_on(proposing, mask, cost)[1].numpy(), PolishOptions(seed=options.seed),
        )  # fmt: skip
        for polished in found:
            spent = polished.spent + objective.spent
            yield replace(polished, spent=spent)
            if spent >= options.polish:
                return

    def _panel(self, options: DipgoOptions) -> Panel:
        """Judges of the polish, on images apart from those of the training: a third first, then the others."""
        training, first = self.training, options.first_seed + _JUDGED_SEED
        bounds = sorted({0, -(-options.polish_images // _SCREEN), options.polish_images})
        calibrations = (
            calibrate(
                training.model, training.graph, training.contract, range(first + low, first + high),
                classes=options.classes, guidance_scale=options.guidance_scale,
            )
            for low, high in pairwise(bounds)
        )  # fmt: skip
        return Panel([Judge(each, training.graph, training.kind, _STATES, training.table) for each in calibrations])

    def _affordable(self, ratio: float, order: Order) -> Candidate:
        """The candidate of the least ratio from the asked one on that prunes as much as is asked."""
        tried = (min(ratio + extra * TOLERANCE / 4, 0.999) for extra in range(9))
        found = [self.candidate(asked, order) for asked in tried]
        return next((candidate for candidate in found if candidate.ratio >= ratio), found[-1])

    def search(self, ratio: float, order: Order = "bisection") -> Iterator[Iteration | Polished | Schedule]:
        """Train what is left, cut at ``ratio``, polish; the schedule comes last."""
        self.candidate(ratio, order)  # What it refuses is refused before the training.
        started, before = time.monotonic(), self.training.seconds
        yield from self.train()
        found, polished = self.candidate(ratio, order), None
        if self.training.options.polish:
            for polished in self.polish(ratio, order):
                yield polished
        if polished is not None:
            found = self._candidate(polished.mask, found, ratio)
        spent = self.training.spent + (polished.spent if polished else 0.0)
        yield self.schedule(found, ratio, spent, before + time.monotonic() - started, polished)

    def schedule(
        self, found: Candidate, ratio: float, spent: float, seconds: float, polished: Polished | None = None
    ) -> Schedule:
        """``found`` as a checked schedule whose ``origin`` says how it was made."""
        options = self.training.options
        origin = {
            "method": "dipgo",
            "ratio": f"{ratio:g}",
            "reached": f"{found.ratio:.4f}",
            "seed": str(options.seed),
            "iterations": str(self.training.done),
            "budget": options.budget,
            "loss": options.loss,
            **({"cost": self.training.table.target} if self.training.table else {}),
            **found.knobs,
            **({"score_db": f"{polished.score_db:.3f}"} if polished else {}),
            "spent": f"{spent:.1f}",
            "seconds": f"{seconds:.1f}",
        }
        training = self.training
        return schedule_from_sets(training.graph, training.contract, training.kind, found.computed, origin)

    def _candidate(self, mask: np.ndarray, start: Candidate, ratio: float) -> Candidate:
        """The polished ``mask``; what exchanges left over of ``ratio`` goes to the entries of the highest scores."""
        graph, pricer = self.training.graph, self.training.pricer
        computed = sets_from_mask(mask, graph.block_names)
        if pricer.ratio(computed) > ratio + TOLERANCE:
            scores = np.where(mask, 2.0, self.training.scores())  # above every probability
            fuller = list(sets_of(mask_of_ratio(scores, graph, pricer, ratio), graph, pricer))
            if pricer.ratio(fuller) >= ratio - TOLERANCE:
                computed = fuller
        return Candidate(computed, pricer.ratio(computed), {**start.knobs, "polished": "yes"})
