"""The tables of a recipe. Their fields are the keys that a recipe may hold, described in ``engines/README.md``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from dipgo_deploy.core.blocks import Kind
from dipgo_deploy.core.contract import Guidance
from dipgo_deploy.core.engine import TargetName
from dipgo_deploy.core.precision import HalfType
from dipgo_deploy.core.program import Layout
from dipgo_deploy.core.run_options import RunOptions

__all__ = [
    "BenchSection",
    "ContenderSection",
    "ExportSection",
    "ModelSection",
    "PicturesSection",
    "Recipe",
    "SamplerSection",
    "SearchSection",
    "TargetSection",
    "VerifySection",
]

_Count = Annotated[int, Field(ge=1)]
_Natural = Annotated[int, Field(ge=0)]
_Positive = Annotated[float, Field(gt=0)]
_Dtype = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class ModelSection:
    """Where the denoiser comes from. ``random_weights`` is an alternative to ``source``."""

    source: str | None = None
    random_weights: str | None = None
    dtype: _Dtype = "float32"
    variant: str | None = None
    revision: str | None = None
    config: str | None = None
    loras: tuple[str, ...] = ()
    size: tuple[_Count, _Count] | None = None
    meta: bool = False


@dataclass(frozen=True)
class SamplerSection:
    """The full run that the schedule prunes. By default each key has the value of the model's own pipeline."""

    name: str | None = None
    options: tuple[str, ...] = ()
    steps: _Count | None = None
    guidance_layout: Guidance | None = None
    guidance_scale: Annotated[float, Field(ge=0)] | None = None


@dataclass(frozen=True)
class SearchSection:
    """One schedule: the method, its budget and its options. The budget is ``ratio`` or ``calls``."""

    method: str = "dipgo"
    ratio: Annotated[float, Field(ge=0, lt=1)] | None = None
    calls: _Count | None = None
    granularity: Literal["stage", "layer", "branch"] = "stage"
    blocks: tuple[str, ...] = ()
    kind: Kind = "output"
    seed: _Natural = 0
    interval: _Count | None = None
    depth: _Count | None = None
    candidates: _Count | None = None
    population: _Count | None = None
    trajectories: _Count | None = None
    images: _Count | None = None
    classes: tuple[_Natural, ...] = ()
    prompts: tuple[str, ...] = ()
    preset: Literal["default", "paper", "paper-dit"] = "default"
    iterations: _Count | None = None
    polish: _Natural | None = None
    order: Literal["bisection", "greedy"] = "bisection"
    pruner: str | None = None
    latency: str | None = None


@dataclass(frozen=True)
class ContenderSection(SearchSection):
    """A further schedule, exported and verified like the main schedule. ``bench = false`` keeps it out."""

    bench: bool = True


@dataclass(frozen=True)
class ExportSection:
    """How schedules become bundles."""

    layout: Layout = "subnets"
    max_graphs: _Count | None = None
    precision: _Dtype | None = None


@dataclass(frozen=True)
class TargetSection:
    """Engines to build. ``library`` defaults to the name of the table."""

    library: TargetName | None = None
    precision: HalfType | None = None
    gpus: tuple[str, ...] = ()
    batch: tuple[_Count, _Count, _Count] | None = None
    optional: bool = False
    workers: _Count = 1
    level: Annotated[int, Field(ge=0, le=5)] | None = None
    workspace_bytes: _Count | None = None
    static: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False
    weight_streaming: bool = False
    refit: bool = False
    strip: bool = False
    tolerance: Annotated[float, Field(gt=0, lt=1)] | None = None
    check_images: _Count = 2
    check_steps: _Count = 6


@dataclass(frozen=True)
class VerifySection:
    """What a verification runs and requires."""

    images: _Count = 4
    seed: _Natural = 1000
    local_tolerance: _Positive | None = None
    min_psnr_db: _Positive | None = None


@dataclass(frozen=True)
class PicturesSection:
    """What is drawn. ``images`` is the number of images per class, and 0 draws none."""

    schedules: bool = True
    images: _Natural = 0
    seed: _Natural = 0
    bench: bool = True


@dataclass(frozen=True)
class BenchSection:
    """Sizes of the bench."""

    batch: _Count = 8
    repeats: Annotated[int, Field(ge=2)] = 10
    images: _Count = 256
    converged_images: _Natural = 64
    converged_calls: _Count = 1000
    tuning_images: _Count = 16
    seed: _Natural = 1000


@dataclass(frozen=True)
class Recipe:
    """A whole recipe. ``pictures`` is None if nothing is drawn."""

    title: str = ""
    model: ModelSection = field(default_factory=ModelSection)
    sampler: SamplerSection = field(default_factory=SamplerSection)
    search: SearchSection = field(default_factory=SearchSection)
    contenders: dict[str, ContenderSection] = field(default_factory=dict)
    export: ExportSection = field(default_factory=ExportSection)
    targets: dict[str, TargetSection] = field(default_factory=dict)
    run: RunOptions = field(default_factory=RunOptions)
    verify: VerifySection = field(default_factory=VerifySection)
    pictures: PicturesSection | None = None
    bench: BenchSection = field(default_factory=BenchSection)

    @property
    def schedules(self) -> dict[str, SearchSection]:
        """Every schedule by its name, the main schedule first under the name of its method."""
        return {self.search.method: self.search, **self.contenders}
