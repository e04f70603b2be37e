"""A tiny recipe of digits-unet, and ways to run it."""

from __future__ import annotations

from pathlib import Path

from dipgo_deploy.core.progress import Progress, finish
from dipgo_deploy.recipes import RunReport, load_recipe, run_recipe

TINY = """
[model]
source = "digits-unet"
[sampler]
name = "ddim"
steps = 6
guidance_layout = "none"
[search]
method = "dipgo"
ratio = 0.5
iterations = 12
polish = 0
images = 2
[contenders.uniform]
method = "uniform"
ratio = 0.5
[verify]
images = 1
[bench]
batch = 1
repeats = 2
images = 2
converged_images = 0
tuning_images = 1
"""


def write_recipe(folder: Path, text: str = TINY) -> Path:
    path = folder / "tiny.toml"
    path.write_text(text)
    return path


def run_tiny(
    folder: Path, *overrides: str, until: str | None = "export", text: str = TINY, **options
) -> list[Progress]:
    """Every Progress of a run in ``folder / "out"``."""
    steps: list[Progress] = []
    finish(work_of(folder, *overrides, until=until, text=text, **options), steps.append)
    return steps


def work_of(folder: Path, *overrides: str, until: str | None = "export", text: str = TINY, **options):
    return run_recipe(load_recipe(write_recipe(folder, text), overrides), folder / "out", until=until, **options)


def lines(steps: list[Progress]) -> dict[str, str]:
    """The line of every stage."""
    return {step.stage: step.text for step in steps if " / " not in step.stage}


__all__ = ["RunReport", "TINY", "lines", "run_tiny", "work_of", "write_recipe"]
