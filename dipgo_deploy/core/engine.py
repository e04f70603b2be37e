"""Engine record: the sources, target machine and memory of a serialized engine."""

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
    """One input or output of the built network. A size of -1 in ``shape`` depends on the batch."""

    mode: Literal["input", "output"]
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class ProfileRange:
    """Smallest, largest and preferred shape of one input. The engine is fastest at the preferred shape."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True)
class EngineRecord:
    """One engine file. The record is ``<graph>.json``, next to the engine.

    Attributes:
        graph: name of the graph.
        digest: sha256 over everything the build depends on: graph, weights, options, target, version and GPU.
        graph_digest: sha256 of the ONNX graph without its name.
        weights_digest: sha256 of the weights file.
        target, version: the library that built the engine.
        gpu: compute capability such as ``sm89``, or several joined by ``+``.
        precision: dtype of the source graph.
        flags: build options that differ from their defaults.
        batch: images per call.
        io: inputs and outputs of the network.
        profile: accepted shapes of each input, empty for a static engine.
        sha256, bytes: digest and size of the engine file.
        weight_bytes: bytes of the graph's weights.
        activation_bytes: device memory of one context at the largest shapes. The engine reports it, or without a GPU
            its builder. None where neither did.
        layers: number of layers of the built network.
        seconds: duration of the build.
        build_memory_bytes: peak memory of the build process.
        tools: versions of the tools.
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
        """Whether the file holds no weights, so that loading the engine must add them."""
        return "strip" in self.flags


def engine_folder(target: str, version: str, gpu: str) -> str:
    """Name of the folder, inside ``engines``, of all engines for one target, version and GPU."""
    return f"{target}-{version}-{gpu}"
