"""Calls that the stages make into models, graphs and search."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.errors import InputError, MissingError, UsageError
from dipgo_deploy.core.files import load_latency_table
from dipgo_deploy.core.progress import Progress, Work
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.recipes.recipe import SHIPPED
from dipgo_deploy.recipes.sections import ModelSection, Recipe, SearchSection

if TYPE_CHECKING:
    from dipgo_deploy.models import LoadedModel
    from dipgo_deploy.search.options import SearchOptions

__all__ = ["check_search", "load_model", "model_files", "search", "start_pruner", "trace_blocks", "trained_iterations"]

_MIB = 2**20
_METHOD_KEYS = ("interval", "depth", "candidates", "population", "trajectories", "iterations", "polish")
"""Keys of a schedule that belong to some methods."""

_OWN_CALLS = ("uniform",)
"""Methods with a number of calls as an option. For other methods a budget of calls is converted to a ratio."""


def load_model(section: ModelSection) -> LoadedModel:
    """The model of a recipe. Raises MissingError if random weights do not fit into the free memory."""
    from dipgo_deploy import models
    from dipgo_deploy.models.lora import with_loras
    from dipgo_deploy.models.lora_files import loras_from_texts

    if section.random_weights is not None:
        model = models.load_random(section.random_weights, dtype=section.dtype, device="meta")
        if not section.meta:
            _check_memory(model)
            model = models.load_random(section.random_weights, dtype=section.dtype)
    else:
        model = models.load_model(
            str(section.source), dtype=section.dtype, variant=section.variant, revision=section.revision,
            config=section.config, meta=section.meta,
        )  # fmt: skip
    if section.size is not None:
        model = model.with_latent_shape((*model.latent_shape[:-2], *section.size))
    return with_loras(model, loras_from_texts(section.loras))


def _check_memory(model: LoadedModel) -> None:
    from dipgo_deploy.supernet.memory import TRACE_MEMORY, free_host_bytes

    needed, free = int(TRACE_MEMORY * model.weight_bytes), free_host_bytes()
    if needed > free:
        raise MissingError(
            f"model.random_weights needs {needed // _MIB} MiB of memory, {free // _MIB} MiB are free: set "
            "model.meta to true and stop with --until search"
        )


def model_files(section: ModelSection) -> str:
    """A digest of name, size and modification time of the model's local files, "" if there are none.

    The files are not read, as they may have many GB. Hub models and shipped models are identified by name.
    """
    sources = [section.source, section.random_weights, section.config, *section.loras]
    lines = []
    for source in filter(None, sources):
        for path in sorted(_local_files(source)):
            status = path.stat()
            lines.append(f"{path} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else ""


def _local_files(source: str) -> Iterable[Path]:
    path = Path(source)
    if path.is_dir():
        return [file for file in path.rglob("*") if file.is_file()]
    if path.is_file():
        return [path]
    module, colon, _ = source.partition(":")
    spec = find_spec(module.partition(".")[0]) if colon and module.isidentifier() else None
    return [Path(spec.origin)] if spec is not None and spec.origin is not None else []


def trace_blocks(model: LoadedModel, section: SearchSection) -> BlockGraph:
    """The blocks of the model, divided as the schedule of ``section`` needs them."""
    from dipgo_deploy.graphs import trace

    return trace(model, granularity=section.granularity, patterns=section.blocks or None).blocks


def check_search(table: str, section: SearchSection) -> None:
    """Refuse keys of one schedule that do not fit its method.

    Raises:
        UsageError: the message begins with the name of the table.
    """
    try:
        _search_options(section, section.ratio or 0.0, None, None)
    except UsageError as error:
        raise UsageError(f"{table}: {error}; KEY= leaves a key out") from None


def _search_options(
    section: SearchSection, ratio: float, guidance_scale: float | None, pruner: Path | None
) -> SearchOptions:
    from dipgo_deploy.search import SearchOptions, method_options

    own = {name: getattr(section, name) for name in _METHOD_KEYS}
    if section.order != "bisection":
        own["order"] = section.order
    if section.pruner is not None or section.method == "dipgo":
        own["pruner"] = pruner or Path("pruner")  # the check ignores the name
    if section.method in _OWN_CALLS:
        own["calls"] = section.calls
    return SearchOptions(
        section.method, ratio, kind=section.kind, seed=section.seed,
        settings=method_options(section.method, section.preset, **own), granularity=section.granularity,
        patterns=section.blocks or None, images=section.images, classes=section.classes, prompts=section.prompts,
        guidance_scale=guidance_scale,
        latency=None if section.latency is None else load_latency_table(Path(section.latency)),
    )  # fmt: skip


def search(
    model: LoadedModel, graph: BlockGraph, recipe: Recipe, section: SearchSection, pruner: Path
) -> Work[Schedule]:
    """Search the schedule of ``section``.

    Args:
        model: the model of the recipe.
        graph: its blocks.
        recipe: for the sampler.
        section: what is searched.
        pruner: where method dipgo keeps its pruner. An existing file is continued, or made again if it does not fit.
    """
    from dipgo_deploy.core.sampler_options import parse_sampler_options
    from dipgo_deploy.models import make_contract
    from dipgo_deploy.search.run import search as search_model

    sampler = recipe.sampler
    contract = make_contract(
        model,
        sampler=sampler.name,
        sampler_options=parse_sampler_options(sampler.options),
        steps=sampler.steps,
        guidance=sampler.guidance_layout,
    )
    options = _search_options(section, _ratio(section, contract.sampler.calls), sampler.guidance_scale, pruner)
    try:
        return (yield from search_model(model, contract, options, blocks=graph))
    except InputError:
        if not pruner.exists() or section.pruner is not None:
            raise
        pruner.unlink()  # damaged, or of an older run with other keys
        yield Progress("training", 0, 1, "the pruner of an earlier run does not fit: starting again")
    return (yield from search_model(model, contract, options, blocks=graph))


def _ratio(section: SearchSection, calls: int) -> float:
    """The pruned share of MACs that the budget leaves."""
    if section.calls is None:
        return section.ratio or 0.0
    if section.calls > calls:
        raise UsageError(f"search.calls is {section.calls}, the full run makes {calls} calls: give at most {calls}")
    return 1 - section.calls / calls


def start_pruner(recipe: Recipe, section: SearchSection) -> Path | None:
    """The pruner that the search starts from, None if training starts from scratch."""
    if section.pruner is None:
        return None
    if section.pruner != SHIPPED:
        return Path(section.pruner)
    from dipgo_deploy.search.dipgo.pruner_file import shipped_pruner

    return shipped_pruner(str(recipe.model.source))


def trained_iterations(pruner: Path) -> str:
    """How far the pruner in a file is trained, as readable text."""
    from dipgo_deploy.search.dipgo.pruner_file import read_record

    record = read_record(pruner)
    return f"iteration {record.done} of {record.options.iterations}"
