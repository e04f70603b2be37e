"""One trained pruner, many ratios: the ratio that each cut reaches and its time, without running the model.

Pruners are those that benchmarks/search.py left under benchmarks/pruners, of the preset default and of the paper's.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from search import CASES, Cell, case_of, options_of, pruner_file, trained_options

from dipgo_deploy.core.disk import write_atomic
from dipgo_deploy.runtime.environment import environment
from dipgo_deploy.search.dipgo.search import GradientSearch
from dipgo_deploy.search.problem import Problem

RESULTS = Path(__file__).parent / "results" / "ratios.json"
RATIOS = tuple(round(0.3 + 0.05 * place, 2) for place in range(13))
METHODS = ("dipgo", "dipgo-paper")


def cuts(case: str, method: str, steps: int) -> list[dict[str, Any]]:
    """A row for every ratio and order. No rows where the pruner was not trained."""
    settings = options_of(method, case)
    assert settings is not None
    path = pruner_file(case, method, 0, settings.iterations)
    if not path.is_file():
        print(f"{path} is missing: run benchmarks/search.py --cases {case} --methods {method}", file=sys.stderr)
        return []
    subject, rows = case_of(case, steps), []
    for order in ("bisection", "greedy"):
        options = trained_options(Cell(case, method, 0, RATIOS[0]), replace(settings, order=order), subject.kind)
        search = GradientSearch(Problem(subject.model, subject.graph, subject.contract, options))
        for ratio in RATIOS:
            started = time.perf_counter()
            reached = search.candidate(ratio).ratio
            took = time.perf_counter() - started
            rows.append({"case": case, "method": method, "order": order, "ratio": ratio, "reached": reached, "s": took})
    return rows


def main() -> None:
    """Cut every pruner that is there; print the worst of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50, help="network calls of the full run")
    arguments = parser.parse_args()
    rows = [row for case in CASES for method in METHODS for row in cuts(case, method, arguments.steps)]
    command = shlex.join(["python", "benchmarks/ratios.py", *sys.argv[1:]])
    document = {"environment": {**environment(), "command": command}, "cuts": rows}
    write_atomic(RESULTS, json.dumps(document, indent=1, allow_nan=False) + "\n")
    for order in ("bisection", "greedy"):
        part = [row for row in rows if row["order"] == order]
        gap = max(abs(row["reached"] - row["ratio"]) for row in part)
        print(
            f"{order}: {len(part)} cuts, furthest {gap:.4f} from its ratio, slowest {max(r['s'] for r in part):.3f} s"
        )


if __name__ == "__main__":
    main()
