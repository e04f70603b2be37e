"""Engine record: what a serialized engine was built from, for which machine, and what it needs there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from dipgo_deploy.core.contract import BatchRange

__all__ = ["ENGINES_FOLDER", "EngineRecord", "EngineTensor", "ProfileRange", "TargetName", "engine_folder"]

TargetName = Literal["tensorrt", "rtx"]
"""The library an engine is built with and runs on: TensorRT, or TensorRT for RTX."""

ENGINES_FOLDER = "engines"
"""Name of the folder of all engines, inside the denoiser's."""


@dataclass(frozen=True)
class EngineTensor:
    """One input or output as the built network has it: ``shape`` with -1 for a size that the batch decides."""

    mode: Literal["input", "output"]
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class ProfileRange:
    """Shapes of one input that an engine accepts, and the one it is fastest at."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True)
class EngineRecord:
    """One engine file. It stands beside it as ``<graph>.json``.

    ``digest`` is the sha256 over all that decides the build (graph, weights, options, target, version, GPU);
    ``graph_digest`` of the ONNX graph without its name, ``weights_digest`` of the weights file, ``sha256`` of the
    engine. ``gpu`` is ``sm89`` or several joined by ``+``. ``batch`` counts images, ``profile`` gives shapes by input,
    empty for a static engine. ``weight_bytes`` are those of the graph's tensors; ``activation_bytes`` is the
    device memory of one context at the largest shapes, as the engine says or, without a GPU to open it on, its builder;
    None where neither did. ``seconds`` and ``build_memory_bytes`` (the peak of the
    process) are those of the build.
    """

    graph: str
    digest: str
    graph_digest: str
    weights_digest: str
    target: TargetName
    version: str
    gpu: str
    precision: str
    flags: tuple[str, ...]
    batch: BatchRange
    io: Mapping[str, EngineTensor]
    profile: Mapping[str, ProfileRange]
    sha256: str
    bytes: int
    weight_bytes: int
    activation_bytes: int | None
    layers: int
    seconds: float
    build_memory_bytes: int
    tools: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_stripped(self) -> bool:
        """Whether the weights are not in the file, and have to be put in when it is loaded."""
        return "strip" in self.flags


def engine_folder(target: str, version: str, gpu: str) -> str:
    """Name of the folder, inside ``engines``, of what was built for one target, version and GPU."""
    return f"{target}-{version}-{gpu}"
