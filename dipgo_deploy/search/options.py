"""SearchOptions: the goal and the method of a search. The table of all methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from typing import Any, Literal, TypeVar, get_args

from dipgo_deploy.core.blocks import Kind
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.latency import LatencyTable
from dipgo_deploy.search.dipgo.options import PRESETS, DipgoOptions
from dipgo_deploy.search.fit.options import FitOptions
from dipgo_deploy.search.learned.options import LearnedOptions
from dipgo_deploy.search.method_options import (
    BestRandomOptions,
    DeepCacheOptions,
    DpcacheOptions,
    EvolutionOptions,
    ForaOptions,
    MethodOptions,
    RandomOptions,
    UniformOptions,
)

__all__ = ["IMAGES", "METHODS", "NOTE", "RULES", "TOLERANCE", "Method", "SearchOptions", "method_options"]

TOLERANCE = 0.0125
"""How near a ratio must come to the requested ratio to count as reached (DiP-GO, Algorithm 1)."""

IMAGES = 8
"""Number of images for evaluating schedules, if ``SearchOptions.images`` is not given."""

NOTE = "note"
"""Stage of a Progress whose text deserves its own line, such as the memory that a search will need."""

Settings = TypeVar("Settings", bound=MethodOptions)


@dataclass(frozen=True)
class Method:
    """One way to make a schedule.

    Attributes:
        options: the dataclass of the method's own options.
        function: ``module:name`` of the function that runs. The module is imported on first use, so options are checked
            before PyTorch is imported.
        needs: arguments of the function. ``blocks``: block graph, number of steps and SearchOptions. Returns a
            Candidate. ``evaluator``: an Evaluator and SearchOptions. ``model``: a Problem. The last two return a
            generator of Progress whose result is a Candidate.
        presets: named options. ``default`` is always present.
    """

    options: type[MethodOptions]
    function: str
    needs: Literal["blocks", "evaluator", "model"]
    presets: Mapping[str, MethodOptions] = field(default_factory=dict)

    @property
    def runs_model(self) -> bool:
        """Whether the method runs the model, which then must have weights."""
        return self.needs != "blocks"

    def load(self) -> Callable[..., Any]:
        """The function, imported on first use."""
        module, name = self.function.split(":")
        function: Callable[..., Any] = getattr(import_module(f"dipgo_deploy.search.{module}"), name)
        return function


METHODS: Mapping[str, Method] = {
    "uniform": Method(UniformOptions, "rules:uniform", "blocks"),
    "deepcache": Method(DeepCacheOptions, "rules:deepcache", "blocks"),
    "fora": Method(ForaOptions, "rules:fora", "blocks"),
    "random": Method(RandomOptions, "random_schedules:random_search", "blocks"),
    "best-random": Method(BestRandomOptions, "random_schedules:best_of_random", "evaluator"),
    "evolutionary": Method(EvolutionOptions, "evolution:evolutionary", "evaluator"),
    "dpcache": Method(DpcacheOptions, "dynamic_programming:dynamic_programming", "evaluator"),
    "fit": Method(FitOptions, "fit.search:fit", "model"),
    "learned": Method(LearnedOptions, "learned.search:learned", "model"),
    "dipgo": Method(DipgoOptions, "dipgo.search:dipgo", "model", PRESETS),
}
"""Every method by name. A new method is one options dataclass and one entry here."""

RULES = tuple(name for name, method in METHODS.items() if not method.runs_model)
"""Names of the methods that need the block graph alone, not the model's weights."""


@dataclass(frozen=True)
class SearchOptions:
    """Options of one search: options that all methods share, and options of the method.

    Attributes:
        method: a name in METHODS.
        ratio: pruned share of the full run's MACs (``papers`` convention) in [0, 1), or of its time where
            ``latency`` is given.
        kind: what is reused of a block: its output, or its output minus its input.
        seed: seed of all random draws of the method.
        settings: options of the method. None means the method's defaults.
        granularity: block set that the model is traced with.
        patterns: block paths, instead of a granularity.
        max_graphs: limit on the number of distinct graphs that the schedule lowers to. None sets no limit.
        latency: a latency table. Ratios are then shares of time.
        images: number of images for evaluating schedules. None means 8, or the number that a pruner from a file used.
        classes: class labels, assigned to images in turn. If empty, all classes of the model.
        prompts: prompts, assigned to images in turn, instead of classes.
        guidance_scale: guidance scale of all runs. None means the contract's default.

    Raises:
        UsageError: a value out of range, or an option that does not fit the method.
    """

    method: str = "uniform"
    ratio: float = 0.8
    kind: Kind = "output"
    seed: int = 0
    settings: MethodOptions | None = None
    granularity: str = "stage"
    patterns: tuple[str, ...] | None = None
    max_graphs: int | None = None
    latency: LatencyTable | None = None
    images: int | None = None
    classes: tuple[int, ...] = ()
    prompts: tuple[str, ...] = ()
    guidance_scale: float | None = None

    def __post_init__(self) -> None:
        """Check every field, and fill in the method's default options."""
        method = _method_named(self.method)
        if not 0 <= self.ratio < 1:
            raise UsageError(f"ratio {self.ratio} is not in [0, 1): give the share of MACs to prune, such as 0.8")
        if self.kind not in get_args(Kind):
            raise UsageError(f"kind {self.kind!r} is unknown: choose {', '.join(get_args(Kind))}")
        if self.seed < 0:
            raise UsageError(f"seed must be at least 0, got {self.seed}")
        for name in ("max_graphs", "images"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise UsageError(f"{name} must be at least 1, got {number}")
        if self.classes and self.prompts:
            raise UsageError("classes and prompts both say what images show: give one of them")
        if self.guidance_scale is not None and not self.guidance_scale >= 0:
            raise UsageError(f"guidance_scale must be at least 0, got {self.guidance_scale}")
        if self.settings is None:
            object.__setattr__(self, "settings", method.options())
        self._check_method(method)

    def _check_method(self, method: Method) -> None:
        if type(self.settings) is not method.options:
            raise UsageError(
                f"method {self.method} takes {method.options.__name__}, got {type(self.settings).__name__}: change "
                "method or settings"
            )
        for name in ("classes", "prompts"):
            if getattr(self, name) and not method.runs_model:
                raise UsageError(f"{name} is for methods that run the model, not for {self.method}: leave it out")
        if self.settings is not None:
            self.settings.check_shared([f.name for f in fields(self) if getattr(self, f.name) != f.default])

    def settings_as(self, kind: type[Settings]) -> Settings:
        """The options of the method, as ``kind``. Raises TypeError if they are of another class."""
        if not isinstance(self.settings, kind):
            raise TypeError(f"{self.method} has {type(self.settings).__name__}, not {kind.__name__}")
        return self.settings

    @property
    def image_count(self) -> int:
        """Number of images for evaluating schedules."""
        return IMAGES if self.images is None else self.images


def method_options(method: str, preset: str = "default", **options: Any) -> MethodOptions:
    """Make the options of a method from separate values, as given on a command line or in a configuration file.

    Args:
        method: a name in METHODS.
        preset: named options of the method to start from.
        options: option values by field name. None means the value of the preset.

    Returns:
        The method's options dataclass.

    Raises:
        UsageError: an unknown method or preset, an option of another method, or a value out of range.
    """
    chosen = _method_named(method)
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in _names(chosen):
            owners = " or ".join(other for other in METHODS if name in _names(METHODS[other]))
            hint = f"leave it out, or choose {owners}" if owners else "leave it out"
            raise UsageError(f"{name} does not belong to method {method}: {hint}")
    presets = chosen.presets or {"default": chosen.options()}
    if preset not in presets:
        if not chosen.presets:
            raise UsageError(f"preset does not belong to method {method}: leave it out, or choose dipgo")
        raise UsageError(f"preset {preset!r} is unknown: choose {', '.join(presets)}")
    if preset != "default" and "from_pruner" in given:
        raise UsageError("preset belongs to training, but from_pruner names a trained pruner: leave one out")
    return replace(presets[preset], **given)


def _method_named(name: str) -> Method:
    if name not in METHODS:
        raise UsageError(f"method {name!r} is unknown: choose {', '.join(METHODS)}")
    return METHODS[name]


def _names(method: Method) -> set[str]:
    return {each.name for each in fields(method.options)}
