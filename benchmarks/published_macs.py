"""Published multiply-accumulates of whole runs, and how each figure is counted.

A figure is a number of network calls of one architecture, a block of the architecture, or a schedule. ``convention``
says how a call is counted (see ``core.blocks.Macs``). ``rows`` is the number of rows of the network's batch: 2 if both
halves of classifier-free guidance count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["FIGURES", "Figure", "SETTINGS", "Setting"]

DIPGO = "DiP-GO (arXiv 2410.16942)"
DEEPCACHE = "DeepCache (arXiv 2312.00858), Table 3, quoted by DiP-GO"


@dataclass(frozen=True)
class Figure:
    """One published figure in MACs, None if only we count it, and how ours is counted.

    ``block`` names a block of one call. ``schedule`` names a schedule of `SETTINGS`, counted over all its network calls
    or at one ``step``. Without both, the figure is ``calls`` full calls. ``note`` explains the figure, or a difference.
    """

    architecture: str
    what: str
    published: float | None
    source: str = ""
    convention: Literal["papers", "full"] = "papers"
    rows: int = 1
    calls: int = 1
    block: str | None = None
    schedule: str | None = None
    step: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Setting:
    """A schedule for a sampler, in an interchange format (``dipgo``: the published table) or by our own ``rule``."""

    form: str
    sampler: str
    settings: dict[str, Any]
    steps: int = 50


SETTINGS: dict[str, Setting] = {
    "dipgo 0.80, ddim": Setting("dipgo", "ddim", {}),
    "dipgo 0.80, pndm": Setting("dipgo", "pndm", {}),
    "deepcache N=2, chain": Setting(
        "rule", "ddim", {"method": "deepcache", "ratio": 0.46, "interval": 2, "depth": 1, "kind": "residual"}, 250
    ),
    **{
        f"deepcache N=5 id {branch}, {sampler}": Setting(
            "deepcache", sampler, {"cache_interval": 5, "cache_branch_id": branch}
        )
        for sampler in ("ddim", "pndm")
        for branch in (0, 1, 2)
    },
}
"""Schedules by name."""

SD15_BLOCKS = {
    **{"down_blocks.0": 32.9392, "down_blocks.1": 31.3169, "down_blocks.2": 31.4594, "down_blocks.3": 3.7791},
    "mid_block": 6.0285,
    **{"up_blocks.0": 12.9049, "up_blocks.1": 75.1374, "up_blocks.2": 79.1231, "up_blocks.3": 66.0427},
}
"""G MACs of one row, printed by DiP-GO's reference code. With stem and tail they add up to 338.83."""

_PLMS = (
    "published as 50 forwards; PLMS with 50 steps makes 51 network calls, the second and third at one timestep, so "
    "that a run in fact costs one more"
)
_BRANCH = (
    "ten full steps and 40 of the package's branch. The published mean implies 78.36 G for each of the 40, which no "
    "branch costs (see the rows of one step), and 11 full steps of 51 calls do not give it either. The paper takes "
    "'skip branch 2', id 1 counted from one and id 2 from nought. Others could not reproduce it (horseee/DeepCache, "
    "issue 37, reports 151.0 G a step for id 2 where 130.45 G is published)"
)
_IMPLIED = (50 * 130.45e9 - 10 * 338.83e9) / 40
"""MACs of a step between full steps that DeepCache's published mean of 130.45 G implies, if 10 of 50 are full."""


def _sd15() -> Iterator[Figure]:
    yield Figure("sd15", "one forward", 338.83e9, DIPGO)
    for block, giga in SD15_BLOCKS.items():
        yield Figure("sd15", f"block {block}", giga * 1e9, DIPGO, block=block)
    for steps, tera in ((50, 16.94), (25, 8.47), (15, 5.08)):
        yield Figure("sd15", f"{steps} steps", tera * 1e12, DIPGO, calls=steps, note=_PLMS if steps == 50 else "")
    yield Figure("sd15", "PLMS, 50 steps, every call counted", None, calls=51)
    note = "50 rows of the table on 50 DDIM calls: 10 of them call the network, one without down_blocks.3"
    yield Figure("sd15", "schedule 0.80", 3.38e12, DIPGO, schedule="dipgo 0.80, ddim", note=note)
    note = (
        "the table's 50 rows stand for the 50 timesteps; the 51st call shares the timestep and so the row of the one "
        "before it, row 1, which reuses everything: it adds nothing"
    )
    yield Figure(
        "sd15", "schedule 0.80 on the 51 calls of PLMS", 3.38e12, DIPGO, schedule="dipgo 0.80, pndm", note=note
    )
    for branch in (1, 2):
        what, name = f"DeepCache N=5, cache_branch_id {branch}", f"deepcache N=5 id {branch}, ddim"
        yield Figure("sd15", what, 6.52e12, DEEPCACHE, schedule=name, note=_BRANCH)
    for branch in (0, 1, 2):
        what, name = (
            f"DeepCache, one step between full ones, cache_branch_id {branch}",
            f"deepcache N=5 id {branch}, ddim",
        )
        yield Figure(
            "sd15", what, _IMPLIED, "implied by DeepCache's mean of 130.45 G", schedule=name, step=1, note=_BRANCH
        )
    for branch in (0, 1, 2):
        what = f"DeepCache N=5, cache_branch_id {branch}, 51 calls of PLMS"
        yield Figure("sd15", what, None, schedule=f"deepcache N=5 id {branch}, pndm")


def _others() -> Iterator[Figure]:
    for steps, tera in ((50, 38.04), (25, 19.02), (20, 15.21)):
        yield Figure("sd21", f"{steps} steps", tera * 1e12, DIPGO, calls=steps)
    both = "the one table that counts attention's products; without them a forward is 114.47 G"
    yield Figure("dit-xl-2-256", "one forward", 118.64e9, DIPGO, "full", note=both)
    for steps, tera in ((250, 29.66), (100, 11.86)):
        yield Figure("dit-xl-2-256", f"{steps} steps", tera * 1e12, DIPGO, "full", calls=steps)
    note = "which blocks it computes at every second step is not stated; the first and the last of 28 come to this"
    yield Figure(
        "dit-xl-2-256", "DeepCache N=2, 250 steps", 15.88e12, DIPGO, "full", schedule="deepcache N=2, chain", note=note
    )
    yield Figure(
        "pixart-alpha-1024", "20 steps", 85.65e12, DIPGO, rows=2, calls=20,
        note="both halves of guidance count here, and one alone in the tables of the U-Nets; 120 tokens",
    )  # fmt: skip
    yield Figure("sdxl", "4 steps (LCM)", 11.95e12, DIPGO, calls=4)
    for name in ("sd21", "dit-xl-2-256", "pixart-alpha-1024", "sdxl", "sd3-medium", "flux-dev"):
        for convention in ("papers", "full"):
            yield Figure(name, f"one forward, {convention}", None, convention=convention)
    yield Figure("sd15", "one forward, full", None, convention="full")


FIGURES: tuple[Figure, ...] = (*_sd15(), *_others())
"""Every figure, published or ours alone."""
