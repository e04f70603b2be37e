"""Pictures of benchmarks/results/search.json: quality against pruned ratio, one file per case, one line per method."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dipgo_deploy.bench.figure import FAINT, new_figure

RESULTS = Path(__file__).parent / "results"
LOOKS: Mapping[str, tuple[str, str, str]] = {
    "dipgo": ("#b5179e", "o", "dipgo (default)"),
    "dipgo-unpolished": ("#d77fc6", "v", "dipgo, no polish"),
    "dipgo-paper": ("#7b2cbf", "^", "dipgo, settings of the paper"),
    "polish-alone": ("#e07a5f", "P", "polish from even steps"),
    "evolutionary": ("#1d3557", "s", "evolutionary"),
    "dpcache": ("#2a9d8f", "D", "dpcache"),
    "uniform": ("#6c757d", "X", "uniform hold"),
    "best-random": ("#adb5bd", "<", "best of five random"),
    "deepcache": ("#bc6c25", ">", "deepcache"),
    "fora": ("#606c38", "p", "fora"),
    "plain:ddim": ("#457b9d", "1", "DDIM, fewer steps"),
    "plain:dpmpp-2m": ("#0077b6", "*", "DPM-Solver++ 2M, fewer steps"),
    "plain:unipc": ("#48cae4", "+", "UniPC, fewer steps"),
}
"""Colour, mark and name of every method."""

PANELS = (("psnr_full_db", "to the full run"), ("psnr_converged_db", "to the converged run"))


def draw(case: str, rows: list[dict[str, Any]], path: Path) -> None:
    """One panel per reference: the median over images, averaged over search seeds, with their range."""
    with new_figure(path, figsize=(11, 4.6), layout="constrained") as figure:
        left, right = figure.subplots(1, 2)
        for axes, (field, title) in zip((left, right), PANELS, strict=True):
            for method, (colour, mark, name) in LOOKS.items():
                points = series([row for row in rows if row["method"] == method], field)
                if points:
                    ratio, middle, low, high = map(np.array, zip(*points, strict=True))
                    spread = [middle - low, high - middle]
                    axes.errorbar(ratio, middle, spread, color=colour, marker=mark, label=name, ms=5, lw=1.3, capsize=2)
            axes.set_title(f"{case}: median PSNR {title}, dB", fontsize=10)
            axes.set_xlabel("pruned ratio reached", color=FAINT)
            axes.grid(color="#eeeeee")
            axes.spines[["top", "right"]].set_visible(False)
        handles, names = left.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False, fontsize=8)


def series(rows: list[dict[str, Any]], field: str) -> list[tuple[float, float, float, float]]:
    """By asked ratio: mean reached ratio, mean, lowest and highest median of the search seeds."""
    by_ratio: dict[float, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        by_ratio[row["ratio"]].append((row["reached"], row[field]["p50"]))
    found = []
    for _, points in sorted(by_ratio.items()):
        reached, medians = zip(*points, strict=True)
        found.append((float(np.mean(reached)), float(np.mean(medians)), min(medians), max(medians)))
    return found


def main() -> None:
    """Draw every case of the results file beside it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS / "search.json")
    given = parser.parse_args()
    rows = json.loads(given.results.read_text(encoding="utf-8"))["cells"]
    for case in sorted({row["case"] for row in rows}):
        path = given.results.parent / f"search-{case}.png"
        draw(case, [row for row in rows if row["case"] == case], path)
        print(path)


if __name__ == "__main__":
    main()
