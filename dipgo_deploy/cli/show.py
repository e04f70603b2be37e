"""``dipgo-deploy show``: any artifact in readable form, and schedules and benches as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dipgo_deploy.cli.options import Json
from dipgo_deploy.cli.replacing import Force, check_picture_target
from dipgo_deploy.cli.terminal import emit, result, say
from dipgo_deploy.core.errors import InputError, UsageError

if TYPE_CHECKING:
    from dipgo_deploy.core.blocks import BlockGraph
    from dipgo_deploy.core.schedule import Schedule

_FILES = ("bundle.json", "blocks.json", "schedule.json", "program.json")
"""A folder is shown as the first of these files that it holds."""


def show(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="A file or folder that a command wrote, or several benches."),
    ],
    out: Annotated[Path | None, typer.Option(help="Also draw a schedule or benches as .png or .svg.")] = None,
    diff: Annotated[
        Path | None, typer.Option(metavar="OTHER", help="Show in what FILE differs from another artifact of its kind.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Show FILE: a schedule as blocks × steps, a program as a listing, a bundle with its memory, others as tables."""
    from dipgo_deploy.bench.figure import check_picture
    from dipgo_deploy.core.disk import check_target
    from dipgo_deploy.core.file_kind import binary_kind
    from dipgo_deploy.core.files import format_of

    if out is not None:
        check_picture(out)
        check_target(out)
        check_picture_target(out, force)
    file = _file_of(paths[0])
    if diff is not None:
        _show_difference(paths, diff, out, as_json)
        return
    if binary := binary_kind(file):
        _show_binary(file, binary, out, as_json)
        return
    kind = format_of(file)
    if kind == "bench":
        _show_benches([_file_of(path) for path in paths], out, as_json)
        return
    if len(paths) > 1:
        raise UsageError(f"{file} is not a bench, and only benches are shown together: name one file")
    loaded = _load(file, kind)
    if out is not None:
        _draw(file, kind, loaded, out)
    if as_json:
        import json

        emit({"path": str(file), "document": json.loads(file.read_text(encoding="utf-8"))})
    else:
        result(_view(loaded, kind, file))


def _show_difference(paths: Sequence[Path], other: Path, out: Path | None, as_json: bool) -> None:
    if len(paths) > 1 or out is not None:
        raise UsageError("--diff compares one FILE with another artifact: leave --out and other files out")
    from dipgo_deploy.cli.difference_view import compare_files, difference_view

    found = compare_files(_file_of(paths[0]), _file_of(other))
    if as_json:
        emit({"first": str(paths[0]), "second": str(other), "differences": [vars(each) for each in found]})
    else:
        result(difference_view(found, paths[0], other))


_SHOWN_INSTEAD = {
    "an ONNX graph": "show the program.json of its bundle, or open the graph with an ONNX viewer",
    "an engine": "show the record next to it, of the same name with .json",
    "a safetensors file": "show the bundle or the blocks.json around it",
}
"""What to show in place of a binary file."""


def _show_binary(file: Path, kind: str, out: Path | None, as_json: bool) -> None:
    """Show a pruner. Raises InputError for every other binary file, by its kind."""
    from dipgo_deploy.search.dipgo.pruner_file import is_pruner, read_record

    if kind != "a safetensors file" or not is_pruner(file):
        instead = _SHOWN_INSTEAD.get(kind, "name an artifact of dipgo-deploy, such as schedule.json")
        raise InputError(f"{file} is {kind}, which show does not read: {instead}")
    if out is not None:
        raise UsageError(f"--out draws schedules and benches, {file} is a pruner file: leave --out out")
    record = read_record(file)
    if as_json:
        from dataclasses import asdict

        emit({"path": str(file), "document": asdict(record)})
        return
    from dipgo_deploy.cli.pruner_view import pruner_view

    result(pruner_view(record))


def _show_benches(files: Sequence[Path], out: Path | None, as_json: bool) -> None:
    """Show each bench as a table, or with ``--json`` as a document, and all of them in one picture."""
    from dipgo_deploy.bench import load_report, table, to_json
    from dipgo_deploy.bench.bench_picture import bench_picture

    reports = [load_report(file) for file in files]
    if out is not None:
        bench_picture(reports, out, [file.stem for file in files])
        say(f"picture in {out}")
    if as_json and len(files) == 1:
        emit({"path": str(files[0]), "document": to_json(reports[0])})
    elif as_json:
        emit({"paths": [str(file) for file in files], "documents": [to_json(report) for report in reports]})
    else:
        for report in reports:
            result(table(report))


def _file_of(path: Path) -> Path:
    if not path.is_dir():
        return path
    file = next((path / name for name in _FILES if (path / name).is_file()), None)
    if file is None:
        raise InputError(f"{path} holds none of {', '.join(_FILES)}: name a bundle, a trace folder or a file")
    return file


def _load(file: Path, kind: str) -> Any:
    from dipgo_deploy.core import files

    loaders = {
        "blocks": files.load_block_graph,
        "schedule": files.load_schedule,
        "program": files.load_program,
        "bundle": files.load_manifest,
        "latency": files.load_latency_table,
        "precision": files.load_precision,
        "engine": files.load_engine_record,
    }
    if kind not in loaders:
        raise InputError(f"{file} has format {kind!r}, expected one of {', '.join(loaders)}, bench: name an artifact")
    return loaders[kind](file)


def _view(loaded: Any, kind: str, file: Path) -> Any:
    from dipgo_deploy.cli import bundle_view, engine_view, program_view
    from dipgo_deploy.core.files import load_program

    if kind == "bundle":
        return bundle_view.bundle_view(loaded, file.parent, load_program(file.parent / "program.json"))
    if kind == "schedule":
        return _schedule_view(*_with_blocks(loaded, file))
    others: dict[str, Any] = {
        "blocks": bundle_view.blocks_view,
        "program": program_view.program_view,
        "latency": bundle_view.latency_view,
        "precision": engine_view.precision_view,
        "engine": engine_view.engine_view,
    }
    return others[kind](loaded)


def _schedule_view(schedule: Schedule, blocks: BlockGraph | None) -> Any:
    """Blocks × steps. With the block graph, also the memory of the program that the schedule lowers to."""
    from rich.console import Group
    from rich.text import Text

    from dipgo_deploy.cli import program_view, schedule_view
    from dipgo_deploy.lowering import lower
    from dipgo_deploy.models.sampler_coefficients import read_sampler

    view = schedule_view.schedule_view(schedule, blocks)
    if blocks is None:
        say("note: no trace of this model is cached, so shares are of blocks, not of MACs: trace the model first")
        return view
    program = lower(schedule, blocks, read_sampler(schedule.contract.sampler))
    return Group(view, *(Text(program_view.memory_line(program, batch)) for batch in (1, 8)))


def _with_blocks(schedule: Schedule, file: Path) -> tuple[Schedule, BlockGraph | None]:
    """The schedule in the order of its model's blocks, and these blocks, from its own folder or from a cached trace."""
    from dipgo_deploy.core.files import load_block_graph
    from dipgo_deploy.core.schedule import in_order
    from dipgo_deploy.graphs.cached_blocks import cached_blocks

    neighbor = file.parent / "blocks.json"
    graph = load_block_graph(neighbor) if neighbor.is_file() else None
    if graph is None or (graph.model_digest, graph.granularity) != (
        schedule.contract.model_digest,
        schedule.granularity,
    ):
        graph = cached_blocks(schedule)
    if graph is None:
        return schedule, None
    return in_order(schedule, graph.block_names), graph


def _draw(file: Path, kind: str, loaded: Any, out: Path) -> None:
    if kind == "bundle":
        from dipgo_deploy.core.files import load_schedule

        file = file.parent / "schedule.json"
        kind, loaded = "schedule", load_schedule(file)
    if kind != "schedule":
        raise UsageError(f"--out draws schedules and benches, {file} is a {kind} file: leave --out out")
    from dipgo_deploy.bench.schedule_picture import schedule_picture

    schedule, blocks = _with_blocks(loaded, file)
    schedule_picture(schedule, out, blocks)
    say(f"picture in {out}")
