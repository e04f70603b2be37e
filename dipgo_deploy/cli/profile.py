"""``dipgo-deploy profile``: measure what the blocks of a model cost on this machine."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dipgo_deploy.cli.options import (
    Batch,
    Bf16,
    Blocks,
    Config,
    Dtype,
    Fp16,
    Granularity,
    GuidanceLayout,
    Json,
    Lora,
    Model,
    RandomWeights,
    Revision,
    Size,
    Variant,
    half_type,
    patterns_of,
)
from dipgo_deploy.cli.output import emit, result, working
from dipgo_deploy.cli.progress import watched
from dipgo_deploy.cli.source import ModelSource
from dipgo_deploy.cli.units import count_text
from dipgo_deploy.core.errors import UsageError


def profile(
    model: Model = None,
    random_weights: RandomWeights = None,
    variant: Variant = None,
    revision: Revision = None,
    config: Config = None,
    size: Size = None,
    lora: Lora = None,
    out: Annotated[Path, typer.Option(help="Where the latency table is written.")] = Path("latency.json"),
    target: Annotated[
        Literal["onnxruntime-cpu", "onnxruntime-cuda", "torch-cpu", "torch-cuda", "tensorrt", "rtx"],
        typer.Option(help="Backend and device that are measured; for tensorrt and rtx engines are built."),
    ] = "onnxruntime-cpu",
    fp16: Fp16 = False,
    bf16: Bf16 = False,
    granularity: Granularity = "stage",
    blocks: Blocks = None,
    batch: Batch = 8,
    guidance: GuidanceLayout = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 10,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of ONNX Runtime.")] = None,
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Profile MODEL: latencies of its blocks, fitted to calls timed inside whole trajectories."""
    from dipgo_deploy.cli.latency_view import latency_view
    from dipgo_deploy.core.disk import check_target
    from dipgo_deploy.core.files import save_latency_table
    from dipgo_deploy.core.latency import LatencyTable
    from dipgo_deploy.graphs import trace
    from dipgo_deploy.runtime.memory import check_device
    from dipgo_deploy.runtime.profile_options import ProfileOptions, ProfileProgress
    from dipgo_deploy.runtime.profiling import profile as measure

    check_target(out)
    if dtype == "bfloat16" and target == "onnxruntime-cpu":
        raise UsageError("onnxruntime-cpu has no bfloat16: choose another --target, or --dtype float32 or float16")
    source = ModelSource(model, random_weights, dtype, False, tuple(lora or ()), variant, revision, config, size)
    command = shlex.join(["dipgo-deploy", *sys.argv[1:]])
    options = ProfileOptions(
        target=target,
        batch=batch,
        guidance=guidance,
        precision=half_type(fp16, bf16),
        rounds=rounds,
        threads=threads,
        command=command,
    )
    if options.on_engines:
        from dipgo_deploy.trt.target import load_target

        load_target(target, "run")  # before anything is loaded
    check_device(options.device)

    def read(step: Any) -> tuple[float, str] | None:
        if isinstance(step, ProfileProgress):
            engines = f", {count_text(step.built, 'engine')} built" if step.built else ""
            return step.done / step.total, f"round {step.done} of {step.total}{engines}"
        return None

    with working(f"tracing {source.label}"):
        loaded = source.load()
        traced = trace(loaded, granularity=granularity, patterns=patterns_of(blocks))
    table = watched(measure(loaded, traced, options), read, f"profiling on {target}")
    if not isinstance(table, LatencyTable):
        raise AssertionError("a profile ends in its table")
    save_latency_table(out, table)
    if as_json:
        emit({"out": str(out), "forward_ms": table.forward_ms, "blocks_ms": table.blocks_ms, "spread": table.spread})
        return
    result(latency_view(table))
    result(f"in {out}")
