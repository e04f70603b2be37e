"""The worker process, which builds one engine: ``python -m dipgo_deploy.trt.worker PARENT``, the job as JSON on stdin.

The end of the process frees all memory of the library, and a crash of the library ends only the worker. On Linux the
worker ends with its parent, also if the parent is killed. Standard output is the build log. The engine is written first
and its record last, so an engine without a record is incomplete.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

from dipgo_deploy.core.contract import installed_versions
from dipgo_deploy.core.digests import sha256_of
from dipgo_deploy.core.disk import write_atomic
from dipgo_deploy.core.engine import EngineRecord
from dipgo_deploy.core.errors import DipgoError, InputError, first_line
from dipgo_deploy.core.files import save_engine_record
from dipgo_deploy.trt.job import EngineJob, job_from_json
from dipgo_deploy.trt.network import check_types, fix_shapes, parse_network, tensors_of
from dipgo_deploy.trt.target import Target, load_target

__all__ = ["activation_bytes_in", "build_engine", "build_logger", "end_with_parent", "main"]

_PR_SET_PDEATHSIG = 1
"""The option of prctl(2) that chooses the signal a process gets when its parent ends."""

_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+)")

_TOOLS = ("dipgo-deploy", "tensorrt", "tensorrt-rtx", "polygraphy", "onnx", "torch")
"""Distributions whose versions the record of an engine keeps."""


def build_logger(trt: Any) -> Any:
    """An ``ILogger`` that prints messages with a letter for each severity, without details, and keeps its ``lines``."""
    letters = {
        trt.ILogger.INTERNAL_ERROR: "E",
        trt.ILogger.ERROR: "E",
        trt.ILogger.WARNING: "W",
        trt.ILogger.INFO: "I",
    }

    class BuildLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in letters:
                self.lines.append(f"[{letters[severity]}] {message}")
                print(self.lines[-1], flush=True)

    return BuildLogger()


def activation_bytes_in(lines: list[str]) -> int | None:
    """Device memory of one context at the largest shapes of its profile, from the build log. None if not logged."""
    sizes = [match[1] for line in lines if (match := _ACTIVATIONS.search(line))]
    return int(sizes[-1]) if sizes else None


def build_engine(job: EngineJob) -> EngineRecord:
    """Build an engine, and write the engine and its record to the job's folder.

    Returns the record. Raises InputError if the graph cannot be parsed or built, MissingError if the target cannot be
    used here.
    """
    started = time.perf_counter()
    target = load_target(job.target)
    # Polygraphy reads this variable once, when it is imported.
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if target.name == "rtx" else "0"
    from polygraphy.backend.trt import engine_bytes_from_network  # noqa: TID251 - the home of polygraphy

    logger = build_logger(target.module)
    builder = target.module.Builder(logger)
    network, parser = parse_network(target.module, builder, job.onnx, logger)
    if job.flags.static:
        fix_shapes(network, job.profile)
    tensors = tensors_of(network)
    check_types(tensors, job.dtypes, job.graph)
    config = _config(target, builder, network, job)
    try:
        content = bytes(engine_bytes_from_network((builder, network, parser), config, job.timing_cache))
    except Exception as error:  # Polygraphy raises its own class for every failed build.
        raise InputError(f"{job.graph} cannot be built for {'+'.join(job.gpus)} ({_reason(error)})") from None
    path = Path(job.folder) / f"{job.graph}.engine"
    write_atomic(path, content)
    record = EngineRecord(
        graph=job.graph,
        digest=job.digest,
        graph_digest=job.graph_digest,
        weights_digest=job.weights_digest,
        target=job.target,
        version=target.version,
        gpu="+".join(job.gpus),
        precision=job.precision,
        flags=job.flags.names,
        batch=job.batch,
        io=tensors,
        profile={} if job.flags.static else job.profile,
        sha256=sha256_of(path),
        bytes=len(content),
        weight_bytes=job.weight_bytes,
        activation_bytes=_activation_bytes(target, logger, content),
        layers=network.num_layers,
        seconds=time.perf_counter() - started,
        build_memory_bytes=_peak_memory(),
        tools=installed_versions(_TOOLS),
    )
    save_engine_record(path.with_suffix(".json"), record)
    return record


def _config(target: Target, builder: Any, network: Any, job: EngineJob) -> Any:
    from polygraphy.backend.trt import CreateConfig, Profile  # noqa: TID251 - the home of polygraphy

    trt, flags = target.module, job.flags
    profile = Profile()
    for name, shapes in job.profile.items():
        profile.add(name, shapes.min, shapes.opt, shapes.max)
    pools = None if flags.workspace_bytes is None else {trt.MemoryPoolType.WORKSPACE: flags.workspace_bytes}
    hardware = trt.HardwareCompatibilityLevel.AMPERE_PLUS if flags.hardware_compatible else None
    create = CreateConfig(
        profiles=None if flags.static else [profile],
        load_timing_cache=job.timing_cache if Path(job.timing_cache).is_file() else None,
        memory_pool_limits=pools,
        builder_optimization_level=flags.level,
        hardware_compatibility_level=hardware,
        version_compatible=flags.version_compatible,
        exclude_lean_runtime=flags.version_compatible,  # The wheels do not contain the lean runtime.
        weight_streaming=flags.weight_streaming,
    )
    config = create(builder, network)
    if flags.refittable:
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
    if flags.strip:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
    target.choose_gpus(config, job.gpus)
    return config


def _activation_bytes(target: Target, logger: Any, content: bytes) -> int | None:
    """Device memory of one context, as the engine reports. Without a GPU, the number from the build log.

    A Runtime that is made without a GPU ends the process.
    """
    if not target.driver.devices:
        return activation_bytes_in(logger.lines)
    runtime = target.module.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(content)
    return None if engine is None else int(engine.device_memory_size_v2)


def _peak_memory() -> int:
    """Peak resident bytes of this process, 0 if the system does not report them.

    ``ru_maxrss`` would be wrong, because a process inherits the value of its parent.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or first_line(error)


def end_with_parent(parent: int) -> None:
    """Let the kernel kill this process as soon as its parent ends. Only Linux can do that.

    Args:
        parent: process id of the parent. If that process has ended already, this process ends at once.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)


def main() -> int:
    """Build the job on stdin. Returns the exit code of an error, whose message is the last line of stderr."""
    if len(sys.argv) > 1:
        end_with_parent(int(sys.argv[1]))
    try:
        build_engine(job_from_json(sys.stdin.read()))
    except DipgoError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
