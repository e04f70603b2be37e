"""``dipgo-deploy profile``: measure what the blocks of a model cost on this machine."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from dipgo_deploy.cli.options import (
    Backend,
    Batch,
    Bf16,
    Blocks,
    Config,
    Device,
    Dtype,
    Fp16,
    Granularity,
    GuidanceLayout,
    Json,
    Lora,
    Model,
    RandomWeights,
    Revision,
    Sampler,
    SamplerOptions,
    Size,
    Threads,
    Tokens,
    Variant,
    half_type,
    patterns_of,
    run_options,
)
from dipgo_deploy.cli.replacing import Force, check_kind, check_same
from dipgo_deploy.cli.source import ModelSource
from dipgo_deploy.cli.terminal import emit, result, say, show_progress, working
from dipgo_deploy.core.errors import UsageError

_LARGE_ERROR = 0.3
"""A larger error of a table is warned of. On an idle machine the error is 5 to 15 %."""


def profile(
    model: Model = None,
    random_weights: RandomWeights = None,
    variant: Variant = None,
    revision: Revision = None,
    config: Config = None,
    size: Size = None,
    tokens: Tokens = None,
    lora: Lora = None,
    out: Annotated[Path, typer.Option(help="File for the latency table.")] = Path("latency.json"),
    backend: Backend = "onnxruntime",
    device: Device = None,
    fp16: Fp16 = False,
    bf16: Bf16 = False,
    granularity: Granularity = "stage",
    blocks: Blocks = None,
    batch: Batch = 8,
    sampler: Sampler = None,
    sampler_option: SamplerOptions = None,
    guidance_layout: GuidanceLayout = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 10,
    threads: Threads = None,
    dtype: Dtype = "float32",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Profile MODEL: latencies of its blocks, fitted to calls timed inside whole trajectories."""
    from dipgo_deploy.cli.bundle_view import latency_view
    from dipgo_deploy.core.disk import check_target
    from dipgo_deploy.core.files import load_latency_table, save_latency_table
    from dipgo_deploy.core.sampler_options import parse_sampler_options
    from dipgo_deploy.engines import ProfileOptions
    from dipgo_deploy.engines import profile as measure
    from dipgo_deploy.graphs import trace
    from dipgo_deploy.runtime.memory import check_device

    check_target(out)
    check_kind(out, "latency", force)
    run = run_options(backend, device, threads=threads)
    if dtype == "bfloat16" and (run.backend, run.device) == ("onnxruntime", "cpu"):
        raise UsageError("ONNX Runtime has no bfloat16 on the CPU: choose another --backend or --dtype")
    source = ModelSource(
        model, random_weights, dtype, False, tuple(lora or ()), variant, revision, config, size, tokens
    )
    options = ProfileOptions(
        run=run,
        batch=batch,
        guidance=guidance_layout,
        sampler=sampler,
        sampler_options=parse_sampler_options(sampler_option or ()),
        precision=half_type(fp16, bf16),
        rounds=rounds,
        command=shlex.join(["dipgo-deploy", *sys.argv[1:]]),
    )
    check_device(run.device)
    with working(f"tracing {source.label}"):
        loaded = source.load()
        traced = trace(loaded, granularity=granularity, patterns=patterns_of(blocks))
    if out.exists() and not force:
        old, graph = load_latency_table(out), traced.blocks
        is_same = (old.model_digest, old.patterns, old.target) == (graph.model_digest, graph.patterns, options.target)
        held = f"latencies of {old.model_class} {old.model_digest[:12]} on {old.target}"
        check_same(out, is_same and (old.batch, old.threads) == (batch, threads), held, force)
    table = show_progress(measure(loaded, traced, options), f"profiling on {options.target}")
    save_latency_table(out, table)
    if table.spread > _LARGE_ERROR:
        say(
            f"warning: the estimated time of a call is wrong by ±{table.spread:.0%}, as on a busy machine: profile "
            "again on an idle machine, or with more --rounds"
        )
    if as_json:
        emit({"out": str(out), "forward_ms": table.forward_ms, "blocks_ms": table.blocks_ms, "spread": table.spread})
        return
    result(latency_view(table))
    result(f"in {out}")
