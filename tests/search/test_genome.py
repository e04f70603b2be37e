"""Genomes mean canonical schedules, keep what is switched off, and are fitted to a ratio."""

from __future__ import annotations

import numpy as np
import pytest

from dipgo_deploy.core.blocks import PREDICTION
from dipgo_deploy.core.schedule import check_schedule
from dipgo_deploy.search.candidate import schedule_from_sets
from dipgo_deploy.search.cost import Pricer
from dipgo_deploy.search.genome import Genomes
from tests.search.graphs import chain_like, contract_of, unet_like

CASES = [(unet_like(), "output"), (chain_like(), "output"), (chain_like(), "residual")]
STEPS = 12


def genomes_of(graph, kind, steps: int = STEPS, seed: int = 0) -> Genomes:
    return Genomes(graph, Pricer(graph, kind), steps, np.random.default_rng(seed))


def some_genome(graph, seed: int = 1) -> np.ndarray:
    genome = np.random.default_rng(seed).random((STEPS, len(graph.blocks))) < 0.6
    genome[0] = True
    return genome


@pytest.mark.parametrize(("graph", "kind"), CASES)
def test_dead_bits_mean_nothing_and_the_ratio_is_that_of_the_schedule(graph, kind) -> None:
    genomes, pricer, genome = genomes_of(graph, kind), Pricer(graph, kind), some_genome(graph)
    computed = genomes.computed(genome)
    check_schedule(schedule_from_sets(graph, contract_of(graph, STEPS), kind, computed))
    assert computed[0] == set(graph.block_names)
    assert all(pricer.live(step) == step for step in computed[1:])
    assert genomes.ratio(genome) == pytest.approx(pricer.ratio(computed))
    off = int(np.flatnonzero(~genome[:, -1])[0])
    changed = genome.copy()
    changed[off, :-1] = ~changed[off, :-1]
    assert genomes.computed(changed) == computed


def test_a_step_that_is_switched_on_computes_what_it_remembers() -> None:
    graph = chain_like()
    everything = frozenset(graph.block_names)
    genome = genomes_of(graph, "output").genome([everything, frozenset(), frozenset([PREDICTION])])
    genome[1:, -1] = [True, False]
    assert genomes_of(graph, "output").computed(genome) == (everything, everything, frozenset())
    genome[2, -1] = True
    assert genomes_of(graph, "output").computed(genome)[2] == {PREDICTION}


@pytest.mark.parametrize(("graph", "kind"), CASES)
@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.8])
def test_fitting_reaches_the_ratio_and_leaves_its_argument_alone(graph, kind, ratio: float) -> None:
    genomes, genome = genomes_of(graph, kind), some_genome(graph)
    before = genome.copy()
    fitted = genomes.fitted(genome, ratio, 0.0125)
    assert abs(genomes.ratio(fitted) - ratio) <= 0.0125 and fitted[0].all()
    assert (genome == before).all()
    assert (genomes.fitted(fitted, ratio, 0.0125) == fitted).all()


def test_children_are_made_of_their_parents_and_few_mutations() -> None:
    graph = unet_like()
    genomes, off, on = genomes_of(graph, "output"), np.zeros((STEPS, len(graph.blocks)), bool), some_genome(graph)
    off[0] = True
    same = [int((genomes.child(on, on) != on).sum()) for _ in range(200)]
    assert 1 < np.mean(same) < 10 and min(same) == 0
    shares = [float(genomes.child(off, np.ones_like(off))[1:].mean()) for _ in range(200)]
    assert 0.3 < np.mean(shares) < 0.7 and np.std(shares) > 0.1
    assert all(genomes.child(off, on)[0].all() for _ in range(20))


def test_the_smallest_genomes_have_children_and_fits() -> None:
    graph = unet_like(1)
    for steps in (1, 2):
        genomes = genomes_of(graph, "output", steps)
        genome = np.ones((steps, len(graph.blocks)), bool)
        assert genomes.child(genome, genome)[0].all() and genomes.fitted(genome, 0.5, 0.0125)[0].all()
