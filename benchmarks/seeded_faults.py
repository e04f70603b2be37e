"""Seeded faults: twenty defects, put into a copy of the tree one at a time, and the tests that catch them.

``python benchmarks/seeded_faults.py`` copies the tree and replaces one piece of code at a time. It runs the named
tests, which are a part of ``make test``, and notes the first test that fails. A fault that no test catches makes the
exit code 1. Results go to benchmarks/results/seeded_faults.json. A fault is not run again while code and tests stay
the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "seeded_faults.json"


@dataclass(frozen=True)
class Fault:
    """A defect: in ``file``, ``old`` (found exactly once) becomes ``new``; ``tests`` are expected to catch it."""

    name: str
    file: str
    old: str
    new: str
    tests: str


FAULTS = (
    Fault(
        "a forecast's coefficients in the wrong order",
        "core/schedule.py",
        "return tuple(zip(steps, coefficients, strict=True))",
        "return tuple(zip(steps, reversed(coefficients), strict=True))",
        "tests/core tests/lowering",
    ),
    Fault(
        "off by one in the search for earlier computed steps",
        "core/schedule.py",
        "range(step - 1, -1, -1) if block in",
        "range(step - 1, 0, -1) if block in",
        "tests/core tests/lowering",
    ),
    Fault(
        "a step writes what only a later step computes",
        "core/liveness.py",
        "for name, at in needed if at == step)",
        "for name, at in needed if at >= step)",
        "tests/core tests/lowering",
    ),
    Fault(
        "guidance halves swapped",
        "lowering/emission.py",
        'guided=-c, half="first"',
        'guided=-c, half="second"',
        "tests/lowering tests/verify",
    ),
    Fault(
        "a slot is free one call too early",
        "lowering/slots.py",
        "free_from[i] < first[value]",
        "free_from[i] <= first[value] + 1",
        "tests/lowering",
    ),
    Fault(
        "folding drops the factor of an expanded term",
        "lowering/folding.py",
        "constant=part.constant * factor",
        "constant=part.constant",
        "tests/lowering",
    ),
    Fault(
        "the segments layout loses a border value",
        "lowering/layouts.py",
        "borders = gives & (others | needed)",
        "borders = gives & others",
        "tests/lowering tests/verify",
    ),
    Fault(
        "a digest is not checked",
        "core/disk.py",
        "if whole and sha256_of(path) != record.sha256:",
        "if False and sha256_of(path) != record.sha256:",
        "tests/core tests/bundle tests/cli/test_damaged_bundle.py",
    ),
    Fault(
        "a path may leave its folder by a link",
        "core/disk.py",
        "if climbs or not (folder / pure).resolve().is_relative_to(folder.resolve()):",
        "if climbs:",
        "tests/core tests/bundle",
    ),
    Fault(
        "a residual is added to the output instead of the input",
        "graphs/cut.py",
        '_insert(graph, output, "Add", entry, stored, f"{name}:sum")',
        '_insert(graph, output, "Add", output, stored, f"{name}:sum")',
        "tests/graphs tests/verify",
    ),
    Fault(
        "graphs share a weight's bytes at the wrong offset",
        "graphs/weights.py",
        "(base + first, last - first)",
        "(base + first - 4, last - first)",
        "tests/graphs",
    ),
    Fault(
        "an untrusted graph may name any weights file",
        "graphs/untrusted.py",
        'if entries.get("location") != weights:',
        'if entries.get("location") is None:',
        "tests/graphs",
    ),
    Fault(
        "half precision converts the timestep too",
        "graphs/half_graph.py",
        "name == TIMESTEP",
        "False",
        "tests/graphs tests/engines",
    ),
    Fault(
        "a combination accumulates in half precision",
        "runtime/memory.py",
        "np.float64 if is_double else np.float32",
        "np.float64 if is_double else np.float16",
        "tests/runtime",
    ),
    Fault(
        "a sampler with a history does not start again",
        "runtime/session.py",
        "self._stepper.restart(self.batch, seed)",
        "pass",
        "tests/runtime tests/verify",
    ),
    Fault(
        "an engine larger than the memory is loaded",
        "runtime/engine_cache.py",
        "if size > room:",
        "if size > 2 * room:",
        "tests/runtime",
    ),
    Fault(
        "the drop-in takes a step of another run for its own",
        "pipeline/tracker.py",
        "if expected and same:",
        "if expected:",
        "tests/pipeline",
    ),
    Fault(
        "an engine of other weights passes the preflight",
        "trt/preflight.py",
        "!= record.weights_digest:",
        "is None:",
        "tests/trt tests/engines",
    ),
    Fault(
        "a sampler that is not linear passes for linear",
        "models/sampler_coefficients.py",
        "> _LINEAR_TOLERANCE * size",
        "> 10 * size",
        "tests/models",
    ),
    Fault(
        "a forked trajectory overwrites the features of the other",
        "supernet/backup.py",
        "other._kept = {block: dict(steps) for block, steps in self._kept.items()}",
        "other._kept = self._kept",
        "tests/supernet",
    ),
    Fault(
        "a step's cost counts blocks that its prediction never reads",
        "search/cost.py",
        "live = reach(self._graph, computed, [self._graph.prediction], self._kind).computes",
        "live = computed",
        "tests/search",
    ),
)
"""The faults. Each is small, plausible, and in another mechanism."""


def source_digest(fault: Fault) -> str:
    """Digest of the fault, of the code that it changes and of the tests that should catch it."""
    digest = hashlib.sha256(json.dumps(asdict(fault)).encode())
    digest.update((ROOT / "dipgo_deploy" / fault.file).read_bytes())
    for name in fault.tests.split():
        path = ROOT / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def run_fault(fault: Fault, tree: Path) -> dict[str, object]:
    """Put the fault into ``tree``, run its tests, and take it out again."""
    file = tree / "dipgo_deploy" / fault.file
    intact = file.read_text(encoding="utf-8")
    if intact.count(fault.old) != 1:
        raise SystemExit(f"{fault.name}: {fault.old!r} occurs {intact.count(fault.old)} times in {fault.file}")
    file.write_text(intact.replace(fault.old, fault.new), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "2", "-p", "no:cacheprovider", *fault.tests.split()]
    try:
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    finally:
        file.write_text(intact, encoding="utf-8")
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    # pytest exits with 1 after failures, and with 2 where -x stops its workers.
    return {"caught": done.returncode in (1, 2) and bool(failed), "by": failed[:1], "exit_code": done.returncode}


def main() -> int:
    """Run every fault that has no result for the present source yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="run faults whose name holds this text")
    options = parser.parse_args()
    known = json.loads(RESULTS.read_text())["faults"] if RESULTS.is_file() else {}
    results: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        ignored = shutil.ignore_patterns(".venv", ".git", "__pycache__", "demo", "build", ".mypy_cache", ".ruff_cache")
        shutil.copytree(ROOT, tree, ignore=ignored)
        for fault in FAULTS:
            source = source_digest(fault)
            row = known.get(fault.name, {})
            if row.get("source") != source and (options.only is None or options.only in fault.name):
                row = {"file": fault.file, "tests": fault.tests, "source": source, **run_fault(fault, tree)}
                print(f"{'caught' if row['caught'] else 'NOT CAUGHT':<11} {fault.name}: {row['by']}", flush=True)
            if row:
                results[fault.name] = row
                document = {"command": "python benchmarks/seeded_faults.py", "faults": {**known, **results}}
                RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    names = {fault.name for fault in FAULTS}
    results = {name: row for name, row in results.items() if name in names}
    document = {"command": "python benchmarks/seeded_faults.py", "faults": results}
    RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    caught = sum(bool(row["caught"]) for row in results.values())
    print(json.dumps({"faults": len(FAULTS), "run": len(results), "caught": caught}))
    return 0 if caught == len(FAULTS) else 1


if __name__ == "__main__":
    sys.exit(main())
