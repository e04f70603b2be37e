"""What a contract fixes, in the terminal: as a table, or in one line."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from dipgo_deploy.core.contract import Contract

__all__ = ["contract_line", "contract_table", "shape_text"]


def shape_text(shape: Iterable[int | str]) -> str:
    """``4×64×64``."""
    return "\N{MULTIPLICATION SIGN}".join(map(str, shape))


def contract_table(contract: Contract) -> Table:
    """Every field; all but the batch are fixed."""
    sampler, batch = contract.sampler, contract.batch
    rows = {
        "model": f"{contract.model_class} {contract.model_digest[:12]}, {contract.dtype}",
        "sampler": f"{sampler.class_name}, {sampler.steps} steps, {sampler.calls} calls, config {sampler.digest[:12]}",
        "guidance": contract.guidance,
        "latent": f"{shape_text(contract.latent_shape)}, fixed",
        "batch": f"{batch.min} to {batch.max}, best at {batch.opt}",
    }
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def contract_line(contract: Contract) -> str:
    """Shape, guidance and batch: what a call cannot choose, and what it can."""
    fixed = f"fixed: latent {shape_text(contract.latent_shape)}, guidance {contract.guidance}"
    return f"{fixed}; {contract.batch.min} to {contract.batch.max} images"
