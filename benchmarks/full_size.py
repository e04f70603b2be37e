"""Tracing at full size: MACs beside the published counts, seconds and peak memory, with random weights.

One architecture a run, so that the peak is its own: ``python benchmarks/full_size.py sd15``. The last line of stdout is
the JSON document that also stands in benchmarks/results/full_size_<name>.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from diffusers import DiTTransformer2DModel, UNet2DConditionModel
from torch import nn

from dipgo_deploy.core.files import write_atomic
from dipgo_deploy.graphs import trace
from dipgo_deploy.models import model_from_module
from dipgo_deploy.runtime.environment import environment


def sd15() -> nn.Module:
    """The denoiser of Stable Diffusion 1.5."""
    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        cross_attention_dim=768,
        attention_head_dim=8,
        down_block_types=(*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    )


def dit_xl_2() -> nn.Module:
    """DiT-XL/2 at 256 pixels, learned sigma."""
    return DiTTransformer2DModel(
        num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=28, sample_size=32
    )


MODELS = {"sd15": (sd15, 338.749, 401.637), "dit_xl_2": (dit_xl_2, 114.473, 118.667)}
"""Architecture, and G MACs of one forward in the conventions papers and full, counted on the PyTorch modules."""


def measure(name: str) -> dict[str, Any]:
    """Trace one architecture into a folder that is gone afterwards."""
    build, papers, full = MODELS[name]
    model = model_from_module(build(), component="denoiser")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        blocks = trace(model, granularity="stage", out=Path(folder) / "trace").blocks
    return {
        "model": name,
        "trace_seconds": time.perf_counter() - started,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "weight_bytes": blocks.weight_bytes,
        "giga_macs": {"papers": blocks.macs.papers / 1e9, "full": blocks.macs.full / 1e9},
        "wanted_giga_macs": {"papers": papers, "full": full},
        "block_giga_macs": {block.name: block.macs.papers / 1e9 for block in blocks.blocks},
    }


def main() -> None:
    """Measure the named architecture and write its results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=list(MODELS))
    name = parser.parse_args().name
    document = {**measure(name), "environment": {**environment(), "command": f"python benchmarks/full_size.py {name}"}}
    path = Path(__file__).parent / "results" / f"full_size_{name}.json"
    write_atomic(path, json.dumps(document, indent=1, allow_nan=False) + "\n")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
