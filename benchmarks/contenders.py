"""The bench of both reference models with 512 images: searched schedules, learned samplers, rules and plain samplers.

Every schedule prunes 0.8 of the MACs in whole stages. Learned samplers make 10 and 5 calls. Searches and bundles are
kept under benchmarks/pruners, so that an interrupted run goes on. The bench itself, which measures time, always runs as
a whole, and wants a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

from dipgo_deploy.cli.main import run
from dipgo_deploy.core.disk import write_atomic
from dipgo_deploy.models import REFERENCE_MODELS

HERE = Path(__file__).parent
RESULTS = HERE / "results"
METHODS = ("dipgo", "evolutionary", "dpcache", "uniform")
CALLS = {"fit-10": 10, "fit-5": 5}
KINDS = {"digits-unet": "output", "digits-dit": "residual"}
PRUNED = ("--ratio", "0.8")
IMAGES = 512


def command(*arguments: str | Path) -> None:
    """Run one dipgo-deploy command; the process ends with its exit code where it fails."""
    given = [str(argument) for argument in arguments]
    print(f"$ dipgo-deploy {shlex.join(given)}", file=sys.stderr, flush=True)
    if code := run(given):
        sys.exit(code)


def measure(model: str) -> None:
    """Search what is missing, export, bench; the report and its plot go to benchmarks/results."""
    work = HERE / "pruners" / f"bench-{model}"
    work.mkdir(parents=True, exist_ok=True)
    schedules = {name: work / f"{name}.json" for name in (*METHODS, *CALLS)}
    for name, path in schedules.items():
        if not path.is_file():
            learned = ("--method", "fit", "--calls", str(CALLS[name])) if name in CALLS else ()
            command("search", model, *(learned or ("--method", name, *PRUNED, "--kind", KINDS[model])), "--out", path)
    bundle = work / "dipgo"
    if not bundle.is_dir():
        command("export", model, "--schedule", schedules["dipgo"], "--out", bundle)
    others = [part for method in (*METHODS[1:], *CALLS) for part in ("--with-schedule", schedules[method])]
    counts = ("--images", str(IMAGES), "--converged-images", "64", "--converged-calls", "1000")
    found, plot = RESULTS / f"bench-{model}.json", RESULTS / f"bench-{model}.png"
    command("bench", bundle, *others, *counts, "--plot", plot, "--out", found)
    document = json.loads(found.read_text(encoding="utf-8"))
    document["environment"]["command"] = shlex.join(["python", "benchmarks/contenders.py", *sys.argv[1:]])
    write_atomic(found, json.dumps(document, indent=1, allow_nan=False) + "\n")


def main() -> None:
    """Measure the models that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help="all reference models, if none is given")
    for model in parser.parse_args().models or REFERENCE_MODELS:
        measure(model)


if __name__ == "__main__":
    main()
