"""Views of a contract and of a program: what runs at which step, on which slots, in how much memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dipgo_deploy.cli.units import count_text, macs_text, mib_text, step_range
from dipgo_deploy.core.blocks import PREDICTION
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.program import Call, Program, Run, memory_bytes
from dipgo_deploy.core.tensors import SizeRange

__all__ = ["contract_line", "contract_table", "memory_line", "program_view", "shape_text"]


def shape_text(shape: Iterable[int | str]) -> str:
    """``4×64×64``."""
    return "\N{MULTIPLICATION SIGN}".join(map(str, shape))


def contract_table(contract: Contract) -> Table:
    """Every field of a contract. A run chooses the batch and the sizes that have a range."""
    sampler, batch = contract.sampler, contract.batch
    rows = {
        "model": f"{contract.model_class} {contract.model_digest[:12]}, {contract.dtype}",
        "sampler": f"{sampler.class_name}, {sampler.steps} steps, {sampler.calls} calls, config {sampler.digest[:12]}",
        "guidance layout": contract.guidance,
        "latent": f"{shape_text(contract.latent_dims)}{'' if _has_free_latent(contract) else ', fixed'}",
        **{name: _range_text(size) for name, size in contract.ranges.items()},
        "batch": f"{batch.min} to {batch.max}, best at {batch.opt}",
    }
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _has_free_latent(contract: Contract) -> bool:
    return contract.latent_dims != contract.latent_shape


def _range_text(size: SizeRange) -> str:
    return f"{size}, fixed" if size.is_fixed else f"{size}, best at {size.opt}"


def contract_line(contract: Contract) -> str:
    """Shape and guidance layout, which are fixed, and the sizes from which a run chooses."""
    latent = [] if _has_free_latent(contract) else [f"latent {shape_text(contract.latent_shape)}"]
    fixed = [*latent, f"guidance layout {contract.guidance}"]
    fixed += [f"{size} {name}" for name, size in contract.ranges.items() if size.is_fixed]
    free = [f"{contract.batch.min} to {contract.batch.max} images"]
    free += [f"{size} {name}" for name, size in contract.ranges.items() if not size.is_fixed]
    return f"fixed: {', '.join(fixed)}; {', '.join(free)}"


_NAMES = 3
"""Most names to list. Further names are only counted."""


@dataclass
class _Stretch:
    """The graph runs of step ``first``, and all other calls up to step ``last``, before the next graph run."""

    first: int
    last: int
    runs: list[Run] = field(default_factory=list)
    after: list[Call] = field(default_factory=list)


def program_view(program: Program) -> RenderableType:
    """The program step by step, its graphs, slots and bytes.

    Consecutive steps without a network call are one line. They reuse the prediction, so only a combination is left.
    """
    macs, full = program.macs, program.full_macs
    head = [
        Text(f"program, layout {program.layout}: {program.nfe} of {_steps(program)} steps call the network", "bold"),
        Text(f"{len(program.calls)} calls: {_counts(program.calls)}; {count_text(len(program.graphs), 'graph')}"),
        Text(f"MACs per image (papers): {macs_text(macs.papers)} of {macs_text(full.papers)}; "
             f"full: {macs_text(macs.full)} of {macs_text(full.full)}"),
        Text(contract_line(program.contract)),
    ]  # fmt: skip
    slots = Text(count_text(len(program.slots), "slot"))
    memory = [Text(memory_line(program, batch)) for batch in (1, 8)]
    return Group(*head, Text(), _listing(program), Text(), _graphs(program), Text(), slots, *memory)


def memory_line(program: Program, batch: int) -> str:
    """Bytes of the slots for ``batch`` images and of all graphs' weights, in MiB."""
    memory = memory_bytes(program, batch)
    return f"batch {batch}: slots {mib_text(memory['slots'])}, weights over all graphs {mib_text(memory['weights'])}"


def _steps(program: Program) -> int:
    return program.contract.sampler.calls


def _counts(calls: Iterable[Call]) -> str:
    """``3 runs, 2 combinations``, in the singular where there is one."""
    nouns = {"run": "run", "combine": "combination", "sample": "sampler step"}
    ops = [call.op for call in calls]
    counted = [(sum(op == known for op in ops), noun) for known, noun in nouns.items() if known in ops]
    return ", ".join(count_text(count, noun) for count, noun in counted)


def _stretches(program: Program) -> list[_Stretch]:
    stretches: list[_Stretch] = []
    for call in program.calls:
        last = stretches[-1] if stretches else None
        starts = isinstance(call, Run) and not (last and last.runs and last.runs[-1].step == call.step)
        if last is None or starts:
            last = _Stretch(call.step if isinstance(call, Run) else -1, -1)
            stretches.append(last)
        (last.runs if isinstance(call, Run) else last.after).append(call)  # type: ignore[arg-type]
    for stretch, following in zip(stretches, [*stretches[1:], None], strict=True):
        stretch.last = (following.first if following else _steps(program)) - 1
    return stretches


def _listing(program: Program) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("steps", no_wrap=True, justify="right")
    for heading in ("runs", "reads", "writes"):
        table.add_column(heading, overflow="fold")
    for (style, *cells), rows in groupby(_rows(program), key=lambda row: row[2:]):
        spans = list(rows)
        first, last = spans[0][0], spans[-1][1]
        table.add_row("start" if first < 0 else step_range(first, last), *cells, style=style)
    return table


def _rows(program: Program) -> Iterator[tuple[int, int, str, str, str, str]]:
    """First and last step, style, and the columns: runs, reads from earlier steps, writes for later ones."""
    stretches = _stretches(program)
    carried = {name for stretch in stretches for name in _reads(program, stretch)} | {PREDICTION}
    for stretch in stretches:
        then = _counts(stretch.after)
        if not stretch.runs:
            yield -1, -1, "dim", then, "", ""
            continue
        graphs = _names(run.graph for run in stretch.runs)
        writes = [name for run in stretch.runs for name in program.graph_of_name[run.graph].writes if name in carried]
        reused = stretch.last - stretch.first
        what = graphs if reused or not then else f"{graphs}, {then}"
        yield stretch.first, stretch.first, "", what, _names(_reads(program, stretch)), _names(writes)
        if reused:
            left = f"{'reuse' if reused > 1 else 'reuses'} the prediction: {then or 'nothing to do'}"
            yield stretch.first + 1, stretch.last, "cyan", left, "", ""


def _reads(program: Program, stretch: _Stretch) -> list[str]:
    graphs = [program.graph_of_name[run.graph] for run in stretch.runs]
    written = {name for graph in graphs for name in graph.writes}
    return [name for graph in graphs for name in graph.reads if name not in written]


def _names(names: Iterable[str]) -> str:
    distinct = list(dict.fromkeys(names))
    more = f" +{len(distinct) - _NAMES}" if len(distinct) > _NAMES else ""
    return ", ".join(distinct[:_NAMES]) + more or "-"


def _graphs(program: Program) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("graph", no_wrap=True)
    for heading in ("blocks", "papers", "full", "weights", "runs"):
        table.add_column(heading, justify="right", no_wrap=True)
    for graph in program.graphs:
        times = sum(run.graph == graph.name for run in program.runs)
        macs = (macs_text(graph.macs.papers), macs_text(graph.macs.full))
        table.add_row(graph.name, str(len(graph.computes)), *macs, mib_text(graph.weight_bytes), f"{times}")
    return table
