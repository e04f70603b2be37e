"""What engines weigh beyond their weights: built, counted and fitted, each family judged by a fit on the others.

Every cell builds the engines of one small bundle (a schedule of three steps: everything, the later half of the blocks,
nothing) by TensorRT-RTX, which needs no GPU: reference models, tiny families of the tests, and shipped configs at full
depth with few channels. Rows go to benchmarks/results/engine_bytes.json. The fit of the counts of
dipgo_deploy/graphs/kernels.py to all of them, non-negative and relative to each engine's size, goes with ``--write`` to
dipgo_deploy/trt/engine_sizes.json, which the planner reads; the errors beside it are of fits that left out the family.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from resumable import Row, completed
from scipy.optimize import nnls

sys.path.append(str(Path(__file__).parents[1]))  # The tiny models stand among the tests, which nobody installs.

from dipgo_deploy.core.contract import BatchRange
from dipgo_deploy.core.disk import write_atomic
from dipgo_deploy.core.program import Layout
from dipgo_deploy.graphs.activations import peak_bytes
from dipgo_deploy.graphs.folding import folded_values
from dipgo_deploy.graphs.kernels import kernel_counts
from dipgo_deploy.models import LoadedModel, load_model
from dipgo_deploy.models.sources.random import load_random, read_random_config
from dipgo_deploy.runtime.engine_options import EngineOptions
from dipgo_deploy.runtime.engines import build
from dipgo_deploy.runtime.foretold import foretell
from dipgo_deploy.runtime.islands import IslandOptions
from dipgo_deploy.trt.job import BuildFlags
from dipgo_deploy.trt.sizes import SIZES_FILE, with_profile
from tests.models.families import FAMILIES, tiny
from tests.runtime.bundles import few_graphs

RESULTS = Path(__file__).parent / "results" / "engine_bytes.json"

NARROW: dict[str, dict[str, Any]] = {
    "sd15": {"block_out_channels": (32, 64, 128, 128), "cross_attention_dim": 64, "attention_head_dim": 2},
    "dit-xl-2-256": {"num_attention_heads": 2, "attention_head_dim": 64},
    "pixart-alpha-512": {
        "num_attention_heads": 2, "attention_head_dim": 64, "cross_attention_dim": 128, "caption_channels": 64,
    },
    "sd3-medium": {
        "num_attention_heads": 2, "attention_head_dim": 64, "caption_projection_dim": 128, "joint_attention_dim": 64,
        "pooled_projection_dim": 64,
    },
}  # fmt: skip
"""Shipped configs, and what makes them narrow."""

EXPECTED = {
    "node": 650, "kernel": 132_000, "layer_norm": 145_000, "attention": 140_000, "padding": 135_000,
    "profiled_node": 450, "profiled_kernel": 8_000,
}  # fmt: skip
"""What one of each count should add: kernels by their texts, nodes by what else there is in fifty engines."""

SURE_OF = {"node": 60, "profiled_node": 60, "profiled_kernel": 5_000}
"""Within how much that is sure, where it is not the whole: the fit is drawn to it accordingly."""

_PULL = 0.4
"""Strength of it, in standard errors."""

FAMILY = {
    "digits-unet": "digits-unet", "digits-dit": "digits-dit", "sd15": "sd", "dit-xl-2-256": "dit",
    "pixart-alpha-512": "pixart", "pixart-alpha": "pixart", "pixart-sigma": "pixart", "sd3-medium": "sd3",
}  # fmt: skip
"""Family of a model, where it is not its name: what is left out together."""


@dataclass(frozen=True)
class Cell:
    """One bundle: ``static`` engines for four images (one for a narrow config), or with a profile 1 to 4 to 8.

    ``rules`` is another number whenever graphs are counted otherwise: rows of an earlier one are measured again.
    """

    model: str
    layout: Layout
    static: bool
    precision: Literal["float16", "float32"]
    gpu: str = "sm89"
    rules: int = 2


LAYOUTS: tuple[Layout, ...] = ("subnets", "segments")
SMALL = ("digits-unet", "digits-dit", "sd", "sdxl", "ddpm", "dit", "pixart-alpha", "pixart-sigma", "sd3", "flux", "wan")
CELLS = [
    *(Cell(name, layout, static, "float16") for name in SMALL for layout in LAYOUTS for static in (False, True)),
    *(Cell(name, layout, True, "float16") for name in NARROW for layout in LAYOUTS),
    *(Cell(name, "subnets", False, "float16") for name in NARROW),
    *(Cell(name, "subnets", False, "float32") for name in SMALL),
]


def model_of(cell: Cell) -> LoadedModel:
    """The model of a cell; a shipped config in half precision, narrow."""
    if cell.model in FAMILIES:
        return tiny(cell.model)
    if cell.model not in NARROW:
        return load_model(cell.model)
    config = read_random_config(cell.model)
    narrow = replace(config, denoiser={**config.denoiser, **NARROW[cell.model]}, scheduler={"clip_sample": False})
    return load_random(narrow, dtype=cell.precision)


def measured(cell: Cell) -> Row:
    """Build every engine of a cell, and count its graph."""
    images = BatchRange(1, 1, 1) if cell.model in NARROW and cell.static else BatchRange(1, 4, 8)
    options = EngineOptions(
        precision=None if cell.precision == "float32" or cell.model in NARROW else cell.precision,
        target="rtx",
        gpus=(cell.gpu,),
        batch=images,
        flags=BuildFlags(static=cell.static),
        islands=IslandOptions(images=1, steps=1),
        checked=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        bundle = few_graphs(model_of(cell), Path(folder) / "bundle", cell.layout)
        report = list(build(bundle, options))[-1][2]
        assert report is not None
        foretold = foretell(bundle, cell.layout, options.precision)
        most = images.opt if cell.static else images.max
        rows = most * bundle.manifest.contract.rows_per_image
        half = cell.precision == "float16"
        engines = [
            {
                "graph": record.graph,
                "bytes": record.bytes,
                "weight_bytes": record.weight_bytes,
                "folded_bytes": (2 if half else 4) * folded_values(foretold.graphs[record.graph], foretold.specs),
                "layers": record.layers,
                "seconds": record.seconds,
                "version": record.version,
                "activation_bytes": record.activation_bytes,
                "foretold_activation_bytes": peak_bytes(foretold.graphs[record.graph], foretold.specs, rows),
                "counts": with_profile(
                    kernel_counts(foretold.graphs[record.graph], foretold.specs, half), not cell.static
                ),
            }
            for record in report.records
        ]
    print(f"{cell.model} {cell.layout} {cell.precision}: {len(engines)} engines", file=sys.stderr, flush=True)
    return {"family": FAMILY.get(cell.model, cell.model), "engines": engines}


def fitted(rows: Iterable[Row]) -> dict[str, float]:
    """Bytes for one of each count, at least 0: least squares of relative errors over all engines, drawn to EXPECTED."""
    engines = [engine for row in rows for engine in row["engines"]]
    kinds = list(engines[0]["counts"])
    weights = np.array([1 / engine["bytes"] for engine in engines])
    counts = np.array([[engine["counts"][kind] for kind in kinds] for engine in engines], float)
    code = np.array([engine["bytes"] - _held(engine) for engine in engines], float)
    pull = np.array([_PULL / SURE_OF.get(kind, EXPECTED[kind]) for kind in kinds])
    wanted = np.array([EXPECTED[kind] for kind in kinds])
    sides = np.concatenate([code * weights, pull * wanted])
    found, _ = nnls(np.vstack([counts * weights[:, None], np.diag(pull)]), sides)
    return {kind: round(float(value), 1) for kind, value in zip(kinds, found, strict=True)}


def _held(engine: Row) -> float:
    """Bytes of weights that an engine holds."""
    return float(engine["weight_bytes"] - engine["folded_bytes"])


def error(row: Row, model: dict[str, float]) -> float:
    """Relative error of the foretold sum of a bundle's engines."""
    engines = row["engines"]
    foretold = sum(_held(e) + sum(model[k] * n for k, n in e["counts"].items()) for e in engines)
    return float(foretold / sum(e["bytes"] for e in engines) - 1)


def activation_error(row: Row, workspace: int) -> float:
    """Relative error of the foretold activation memory, which a bundle's engines share: that of the largest."""
    engines = row["engines"]
    foretold = workspace + max(engine["foretold_activation_bytes"] for engine in engines)
    return float(foretold / max(engine["activation_bytes"] for engine in engines) - 1)


def judged(rows: list[Row]) -> dict[str, Any]:
    """The fit to all rows of one precision, and errors by bundle: with the family left out, not, and of activations.

    The workspace is the least memory that any context takes: some graphs have next to no values of their own.
    """
    model, errors = fitted(rows), defaultdict(list)
    workspace = min(engine["activation_bytes"] for row in rows for engine in row["engines"])
    for row in rows:
        others = [other for other in rows if other["family"] != row["family"]]
        name = f"{row['model']} {row['layout']}{' static' if row['static'] else ''}"
        errors["held_out"].append((name, round(error(row, fitted(others)), 3)))
        errors["fitted"].append((name, round(error(row, model), 3)))
        errors["activations"].append((name, round(activation_error(row, workspace), 3)))
    return {
        "bytes": model,
        "workspace_bytes": workspace,
        "errors": {kind: dict(found) for kind, found in errors.items()},
    }


def main() -> None:
    """Build what is missing, fit, print, and write the planner's file if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="file for the results")
    parser.add_argument("--write", action="store_true", help="write the fit where the planner reads it")
    given = parser.parse_args()
    rows = list(completed(given.out, CELLS, measured))
    fits = []
    for precision in ("float16", "float32"):
        chosen = [row for row in rows if row["precision"] == precision]
        found = judged(chosen)
        version = chosen[0]["engines"][0]["version"]
        count = sum(len(row["engines"]) for row in chosen)
        source = f"benchmarks/engine_bytes.py: {count} engines of {len(chosen)} bundles"
        fits.append({"target": "rtx", "version": version, "precision": precision, "source": source, **found})
    if given.write:
        write_atomic(SIZES_FILE, json.dumps({"format_version": "1.0", "fits": fits}, indent=1) + "\n")
    print(json.dumps(fits))


if __name__ == "__main__":
    main()
