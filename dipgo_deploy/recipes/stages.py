"""All stages of a recipe, in the order in which they run."""

from __future__ import annotations

from collections.abc import Iterator

from dipgo_deploy.recipes.building import BuildEngine, Export, Search, Trace
from dipgo_deploy.recipes.measuring import Bench, Draw, Verify
from dipgo_deploy.recipes.stage import Job, Stage, division_of

__all__ = ["KINDS", "Job", "Stage", "stages_of"]


KINDS = tuple(stage.kind for stage in (Trace, Search, Export, BuildEngine, Verify, Draw, Bench))
"""Kinds of stages in their order."""


def stages_of(job: Job) -> Iterator[Stage]:
    """All stages of a recipe in the order in which they run: kind after kind, the main schedule first."""
    recipe = job.recipe
    main, *_ = names = list(recipe.schedules)
    labels = {name: "" if name == main else name for name in names}
    divisions: dict[str, str] = {}
    for name, section in recipe.schedules.items():
        divisions.setdefault(division_of(section), name)
    for division, name in divisions.items():
        yield Trace(job, name, "" if name == main else division)
    for kind in (Search, Export):
        yield from (kind(job, name, labels[name]) for name in names)
    for target in recipe.targets:
        yield from (BuildEngine(job, name, f"{target} {labels[name]}".strip(), target=target) for name in job.benched)
    yield from (Verify(job, name, labels[name]) for name in names)
    if recipe.pictures is not None:
        yield from (Draw(job, name, labels[name]) for name in names)
    yield Bench(job)
