"""``dipgo-deploy bench``: measure a bundle against the full model and plain samplers."""

from __future__ import annotations

from typing import Annotated

import typer

from dipgo_deploy.cli.options import Batch, BundleFolder, Json
from dipgo_deploy.cli.output import emit, result, say, working


def bench(
    bundle: BundleFolder,
    batch: Batch = 8,
    repeats: Annotated[int, typer.Option(min=2, help="Timed runs of each contender.")] = 10,
    seeds: Annotated[int, typer.Option(min=1, help="Images for the quality columns.")] = 256,
    as_json: Json = False,
) -> None:
    """Bench BUNDLE: latency, MACs and quality beside the full model and plain samplers, interleaved."""
    from dipgo_deploy.bench import BenchOptions, table, to_json
    from dipgo_deploy.bench import bench as measure
    from dipgo_deploy.runtime import load_bundle

    options = BenchOptions(batch=batch, repeats=repeats, seeds=seeds)
    with working(f"measuring {bundle}"):
        for step in measure(load_bundle(bundle), options):
            say(str(step))
    result(table(step))
    if as_json:
        emit(to_json(step))
