"""Judge every row: save, load, contract, trace, export, and the drop-in's output against plain diffusers.

python -m tests.pipeline.every_pipeline [--write] [NAME ...]
"""

from __future__ import annotations

import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers

from dipgo_deploy.bundle import export
from dipgo_deploy.core.disk import read_json
from dipgo_deploy.core.errors import DipgoError
from dipgo_deploy.core.schedule import full_schedule
from dipgo_deploy.graphs import trace
from dipgo_deploy.models import load_model, make_contract
from dipgo_deploy.pipeline import load_pipeline
from tests.pipeline.every_call import SIDE, STEPS, Row, arguments, flat, rows, save
from tests.pipeline.every_page import PAGE, Result, page

__all__ = ["judge", "judge_all", "quiet"]

TOLERANCE = 1e-3
"""Largest deviation of an output, in parts of the largest value of the plain output."""


_UNCLEAN = ("\n", "Error", "improved", "NoneType", "cannot run on latents")
"""What a refusal must not contain. The last is the wrong remedy for a missing input."""


class _Stage(Exception):
    def __init__(self, state: str, text: str) -> None:
        super().__init__(text)
        self.state = state


def judge(row: Row, folder: Path) -> Result:
    """The result of one row, in a folder of its own."""
    start = time.perf_counter()
    try:
        state, text = _judge(row, folder)
    except _Stage as end:
        state, text = end.state, str(end)
    return Result(row.name, state, text.replace(str(folder), "FOLDER"), time.perf_counter() - start)


def _judge(row: Row, folder: Path) -> tuple[str, str]:
    missing = save(row, folder / "pipeline")
    plain = f"no tiny {', '.join(missing)}" if missing else _plain_run(row, folder / "pipeline")
    shape = plain.shape if isinstance(plain, _Run) else None
    with _stage("load"):
        model = load_model(folder / "pipeline")
        if shape is not None and len(shape) == len(model.latent_shape):
            model = model.with_latent_shape((model.latent_shape[0], *shape[1:]))
        elif shape is not None and len(shape) == 2:
            model = model.with_latent_shape((model.latent_shape[0], SIDE // 2, SIDE // 2))
    with _stage("contract"):
        contract = make_contract(model, steps=STEPS, guidance=row.guidance)
    if isinstance(plain, str):
        return "not tried", plain
    with _stage("trace"):
        graph = trace(model).blocks
    with _stage("export", late=True):
        schedule = full_schedule(contract, graph.granularity, "output", tuple(b.name for b in graph.blocks))
        bundle = export(model, schedule, folder / "bundle")
    with _stage("load_pipeline", late=True):
        pipeline = load_pipeline(bundle, threads=1)
    with _stage("call", late=True):
        deployed = _run(row, pipeline)
    return _compare(plain, deployed)


@dataclass(frozen=True)
class _Run:
    """What one call gave: every prediction of the denoiser, then the output."""

    shape: tuple[int, ...]
    predictions: list[np.ndarray]
    output: np.ndarray


def _plain_run(row: Row, folder: Path) -> _Run | str:
    """The call of plain diffusers, or why it fails."""
    try:
        index = read_json(folder / "model_index.json")
        absent = {name: None for name, entry in index.items() if entry == [None, None]}
        return _run(row, row.cls.from_pretrained(folder, **absent))
    except Exception as error:
        _say()
        return f"plain diffusers fails: {_brief(error)}"


def _run(row: Row, pipeline: Any) -> _Run:
    pipeline.set_progress_bar_config(disable=True)
    shapes: list[tuple[int, ...]] = []
    predictions: list[np.ndarray] = []
    denoiser = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)

    def before(module: Any, args: Any, kwargs: Any) -> None:
        latent = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))
        shapes.append(tuple(latent.shape[1:]))

    def after(module: Any, args: Any, output: Any) -> None:
        predictions.append(flat(output[0] if isinstance(output, tuple) else output.sample))

    denoiser.register_forward_pre_hook(before, with_kwargs=True)
    denoiser.register_forward_hook(after)
    torch.manual_seed(7)
    output = flat(pipeline(**arguments(row)))
    return _Run(shapes[0], predictions, output)


def _say() -> None:
    if "-v" in sys.argv:
        traceback.print_exc()


@contextmanager
def _stage(name: str, late: bool = False) -> Iterator[None]:
    try:
        yield
    except DipgoError as error:
        text = str(error)
        clean = not any(word in text for word in _UNCLEAN)
        raise _Stage("late" if late else "refused" if clean else "unclean", f"{name}: {text}") from None
    except Exception as error:
        _say()
        raise _Stage("raw", f"{name}: {_brief(error)}") from None


def _compare(plain: _Run, deployed: _Run) -> tuple[str, str]:
    if len(plain.predictions) != len(deployed.predictions):
        return "different", f"{len(plain.predictions)} calls, deployed {len(deployed.predictions)}"
    deviations = [_deviation(*pair) for pair in zip(plain.predictions, deployed.predictions, strict=True)]
    deviation = max(*deviations, _deviation(plain.output, deployed.output))
    return ("works" if deviation <= TOLERANCE else "different"), f"{deviation:.1e}"


def _deviation(plain: np.ndarray, deployed: np.ndarray) -> float:
    """The largest deviation in parts of the largest value.

    FLUX predicts the tokens of reference images too, which pipelines cut off and graphs do not have.
    """
    own = plain[: len(deployed)]
    if own.shape != deployed.shape or not np.isfinite(own).all():
        return float("inf")
    return float(np.abs(own - deployed).max() / max(np.abs(own).max(), 1e-6))


def _brief(error: Exception) -> str:
    """Class and first sentence of an exception."""
    return f"{type(error).__name__}: {' '.join(str(error).split()).split('. ')[0][:200]}"


def judge_all(names: Sequence[str] = ()) -> Iterator[Result]:
    """The results of all rows, or of the rows whose names start with one of ``names``."""
    quiet()
    for row in rows():
        if not names or row.name.startswith(tuple(names)):
            with tempfile.TemporaryDirectory() as folder:
                yield judge(row, Path(folder))


def quiet() -> None:
    """No warnings, messages and progress bars of the libraries, and one thread."""
    warnings.filterwarnings("ignore")
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)


def main(words: Sequence[str]) -> None:
    """Print the results of the rows that are named, or write the page of all rows."""
    results = []
    for result in judge_all([word for word in words if not word.startswith("-")]):
        print(f"{result.row}\t{result.state}\t{result.seconds:.1f}\t{result.text}", flush=True)
        results.append(result)
    if "--write" in words:
        PAGE.write_text(page(results, diffusers.__version__, TOLERANCE, STEPS), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
