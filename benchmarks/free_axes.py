"""What free axes cost: graphs with fixed and with free text lengths or latent sizes on ONNX Runtime, and engines.

Two models of middle size with random weights run a schedule that computes everything. Three sessions take turns: the
fixed graph, the fixed graph again (the noise floor), and the free graph at the same sizes. One thread, one image, CPU
time. Engines of the U-Net are built by TensorRT for RTX, which needs no GPU: their bytes and seconds are compared.

    python benchmarks/free_axes.py --axis tokens --axis size --rounds 40
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import median

import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel

from dipgo_deploy.bundle import Bundle, export, load_bundle
from dipgo_deploy.core.contract import BatchRange
from dipgo_deploy.core.disk import write_atomic
from dipgo_deploy.core.progress import finish
from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.core.schedule import full_schedule
from dipgo_deploy.core.tensors import SizeRange
from dipgo_deploy.engines import EngineOptions, build_bundle_engines
from dipgo_deploy.graphs import trace
from dipgo_deploy.models import LoadedModel, make_contract, model_from_module
from dipgo_deploy.models.input_shapes import with_sizes
from dipgo_deploy.runtime.environment import environment
from dipgo_deploy.runtime.generate import run_inputs
from dipgo_deploy.runtime.open import open_session

STEPS = 2
"""Network calls of a run."""


def unet() -> LoadedModel:
    """A U-Net of Stable Diffusion's kind: 40 M parameters, latent of 32 by 32 pixels, 77 tokens."""
    module = UNet2DConditionModel(
        sample_size=32, block_out_channels=(64, 128, 256), layers_per_block=2, cross_attention_dim=256,
        attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    return model_from_module(module, text_tokens=77)


def sd3() -> LoadedModel:
    """A transformer of Stable Diffusion 3's kind: latent of 32 by 32 pixels, 333 tokens."""
    module = SD3Transformer2DModel(
        sample_size=32, in_channels=16, num_layers=6, attention_head_dim=64, num_attention_heads=6,
        joint_attention_dim=256, caption_projection_dim=384, pooled_projection_dim=256, pos_embed_max_size=64,
    )  # fmt: skip
    return model_from_module(module, text_tokens=333)


def bundle_of(model: LoadedModel, folder: Path) -> Path:
    """The bundle of the full run."""
    contract = make_contract(model, steps=STEPS, guidance="none")
    blocks = trace(model).blocks
    return export(model, full_schedule(contract, "stage", "output", blocks.block_names), folder)


def engines(bundles: Mapping[str, Bundle]) -> dict[str, object]:
    """Bytes, activations and seconds of the engines of each bundle, for one image and the bundle's text lengths."""
    options = EngineOptions(target="rtx", gpus=("sm89",), batch=BatchRange(1, 1, 1), check_finite=False)
    rows: dict[str, object] = {}
    for kind, bundle in bundles.items():
        records = finish(build_bundle_engines(bundle, options)).records
        rows[kind] = {
            "bytes": sum(record.bytes for record in records),
            "activation_bytes": max(record.activation_bytes or 0 for record in records),
            "seconds": round(sum(record.seconds for record in records), 1),
        }
    return rows


def variants(model: LoadedModel, axis: str) -> dict[str, LoadedModel]:
    """The model with every axis fixed, and with one axis free."""
    tokens, side = model.tokens, model.latent_shape[-1]
    fixed = model.with_tokens(SizeRange(tokens, tokens, tokens))
    if axis == "tokens":
        return {"fixed": fixed, "free": model.with_tokens(SizeRange(1, tokens, 1024))}
    sides = SizeRange(side // 2, side, 2 * side)
    return {"fixed": fixed, "free": with_sizes(fixed, sides, sides)}


def measured(name: str, model: LoadedModel, axis: str, rounds: int) -> dict[str, object]:
    """Medians of a run in ms, and the two ratios."""
    tokens = model.tokens
    with tempfile.TemporaryDirectory() as folder:
        bundles = {
            kind: load_bundle(bundle_of(variant, Path(folder) / kind))
            for kind, variant in variants(model, axis).items()
        }
        sessions = {
            label: open_session(bundles[kind], 1, RunOptions(threads=1))
            for label, kind in (("fixed", "fixed"), ("again", "fixed"), ("free", "free"))
        }
        built = engines(bundles) if name == "unet" and find_spec("tensorrt_rtx") else {}
        inputs = run_inputs(model, bundles["fixed"].contract, [0])
        times: dict[str, list[float]] = {label: [] for label in sessions}
        for _ in range(rounds + 2):
            for label, session in sessions.items():
                started = time.process_time()
                session.run(*inputs)
                times[label].append(1000 * (time.process_time() - started))
    medians = {label: median(spent[2:]) for label, spent in times.items()}
    pairs = {
        label: median(a / b for a, b in zip(times[label][2:], times["fixed"][2:], strict=True))
        for label in ("again", "free")
    }
    return {
        "model": name, "axis": axis, "tokens": tokens, "latent": model.latent_shape, "rounds": rounds,
        "cpu_ms": medians, "again_over_fixed": pairs["again"], "free_over_fixed": pairs["free"], "engines": built,
    }  # fmt: skip


def main() -> None:
    """Measure both models and write the document. Rows of other axes stay."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--axis", action="append", choices=("tokens", "size"))
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/free_axes.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    axes = arguments.axis or ["tokens", "size"]
    older = json.loads(arguments.out.read_text())["rows"] if arguments.out.is_file() else []
    rows = [row for row in older if row["axis"] not in axes]
    for axis, (name, build) in product(axes, {"unet": unet, "sd3": sd3}.items()):
        torch.manual_seed(0)
        rows.append(measured(name, build(), axis, arguments.rounds))
        print(json.dumps(rows[-1]))
    document = {"environment": environment(), "rows": rows}
    write_atomic(arguments.out, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
