"""The reference: a pipeline's own PyTorch denoiser under the surgery, step by step, with hard gates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import nn

from dipgo_deploy.core.blocks import PREDICTION
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.supernet.backup import BackupStore, block_input
from dipgo_deploy.supernet.surgery import gated

__all__ = ["scheduled"]


@contextmanager
def scheduled(module: nn.Module, schedule: Schedule, calls_per_step: int = 1) -> Iterator[None]:
    """Make every call of ``module`` inside the next step of ``schedule``. Each call of a step has its own features."""
    names = [name for name in schedule.blocks if name != PREDICTION]
    stores = [BackupStore(schedule) for _ in range(calls_per_step)]
    own, count = module.forward, 0

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        (step, which), count = divmod(count, calls_per_step), count + 1
        store = stores[which]

        def gate(block: str, inner: Any, args: Any, kwargs: Any) -> Any:
            entry = block_input(args, kwargs)
            if not schedule.is_computed(step, block):
                return store.backup(step, block, entry)
            feature = inner(*args, **kwargs)
            store.keep(step, block, feature, entry)
            return feature

        with gated(module, names, gate):
            output = own(*args, **kwargs)
        if schedule.is_computed(step, PREDICTION):
            store.keep(step, PREDICTION, output[0])
            return output
        held = store.backup(step, PREDICTION)
        return Transformer2DModelOutput(sample=held) if kwargs.get("return_dict", True) else (held,)

    module.forward = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]
