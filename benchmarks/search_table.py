"""Tables of benchmarks/results/search.json in Markdown: median PSNR to one reference by method and asked ratio.

A cell is the mean over search seeds of the median over images, with the lowest and highest seed in brackets. Shortened
trainings (``NAME@N``), ablations among them, have a table of their own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

RESULTS = Path(__file__).parent / "results" / "search.json"
ORDER = (
    "dipgo", "dipgo-unpolished", "polish-alone", "dipgo-paper", "evolutionary", "dpcache", "uniform", "fora",
    "deepcache", "best-random", "random", "plain:ddim", "plain:unipc", "plain:dpmpp-2m",
)  # fmt: skip

Row = dict[str, Any]


def table(rows: Sequence[Row], field: str) -> list[str]:
    """The lines of one case's table."""
    ratios = sorted({row["ratio"] for row in rows})
    lines = [
        "| method | " + " | ".join(f"{ratio:g}" for ratio in ratios) + " | seconds | search cost |",
        "|---" * (len(ratios) + 3) + "|",
    ]
    found = dict.fromkeys(row["method"] for row in rows)
    for method in sorted(found, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER)):
        own = [row for row in rows if row["method"] == method]
        cells = [value([row for row in own if row["ratio"] == ratio], field) for ratio in ratios]
        cost = f"{mean(row['seconds'] for row in own):.0f} | {mean(row['search_cost'] for row in own):.0f}"
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {cost} |")
    return lines


def value(rows: Sequence[Row], field: str) -> str:
    """Mean and range over seeds; the ratio that was reached, where it is more than 0.0125 off."""
    if not rows:
        return ""
    medians = [row[field]["p50"] for row in rows]
    text = f"{mean(medians):.1f}" + (f" ({min(medians):.1f} to {max(medians):.1f})" if len(medians) > 1 else "")
    reached = mean(row["reached"] for row in rows)
    return text if abs(reached - rows[0]["ratio"]) <= 0.0125 else f"{text} at {reached:.2f}"


def main() -> None:
    """Print a table for every case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--to", choices=["full", "converged"], default="full", help="reference")
    given = parser.parse_args()
    rows = json.loads(given.results.read_text(encoding="utf-8"))["cells"]
    for case in sorted({row["case"] for row in rows}):
        own = [row for row in rows if row["case"] == case]
        for title, shortened in (("", False), (", shortened trainings", True)):
            if shown := [row for row in own if ("@" in row["method"]) == shortened]:
                print(f"\n{case}{title}, dB to the {given.to} run\n")
                print("\n".join(table(shown, f"psnr_{given.to}_db")))


if __name__ == "__main__":
    main()
