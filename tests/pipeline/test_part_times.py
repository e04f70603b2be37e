"""Parts of a pipeline are timed, and no hook stays in the pipeline."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

from dipgo_deploy.pipeline.part_times import time_parts


class Slow(torch.nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self) -> None:
        time.sleep(self.seconds)

    def decode(self) -> None:
        time.sleep(self.seconds)


def test_each_part_gets_its_own_time_and_nothing_stays():
    parts = {"text_encoder": Slow(0.02), "text_encoder_2": Slow(0.03), "unet": Slow(0.1), "vae": Slow(0.07)}
    pipeline = SimpleNamespace(components={**parts, "scheduler": object(), "text_encoder_3": None})
    with time_parts(pipeline) as times:
        for name in ("text_encoder", "text_encoder_2", "unet"):
            parts[name]()
        parts["vae"].decode()
        time.sleep(0.05)
    seconds = times.as_dict()
    expected = {"text_encoder": 0.05, "denoiser": 0.1, "vae": 0.07, "rest": 0.05, "total": 0.27}
    assert all(expected[name] <= seconds[name] + 1e-3 for name in expected) and seconds.keys() == expected.keys()
    assert seconds["total"] == pytest.approx(sum(seconds[name] for name in expected if name != "total"))
    assert all(not part._forward_hooks and not part._forward_pre_hooks for part in parts.values())
    assert "decode" not in vars(parts["vae"])
