"""Emission: the trajectory as calls over values that are written once.

| value | content |
|---|---|
| ``noise``, ``c:<input>`` | first noise and conditioning, from the caller |
| ``x<i>`` | the latent before step i |
| ``in<i>`` | the network's latent input at step i |
| ``e<i>`` | the guided output of step i, for opaque samplers only |
| ``<tensor>@<i>`` | a tensor that step i computes |
| ``<tensor>@<i>~`` | a backup, or the output of a reused block, that step i combines |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dipgo_deploy.core.blocks import PREDICTION, BlockGraph
from dipgo_deploy.core.liveness import StepPlan, block_of_stored, is_residual, residual_name
from dipgo_deploy.core.program import TIMESTEP, Call, Combine, Run, Sample, Term
from dipgo_deploy.core.sampler import OpaqueSampler, SamplerReading, Update
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.core.tensors import TensorSpec
from dipgo_deploy.lowering.layouts import GraphPlan

__all__ = ["Emission"]


class Emission:
    """Collects calls and the spec of every value. ``image`` names the last latent."""

    def __init__(self, schedule: Schedule, graph: BlockGraph, plans: Sequence[StepPlan], layouts: GraphPlan) -> None:
        self.schedule, self.graph, self.plans, self.layouts = schedule, graph, plans, layouts
        self.calls: list[Call] = []
        contract = schedule.contract
        self._latent = TensorSpec("", ("batch", *contract.latent_dims), "float32")
        self.specs: dict[str, TensorSpec] = {"noise": self._latent}
        self.conditioning = {s.name: f"c:{s.name}" for s in graph.inputs[1:] if s.name != TIMESTEP}
        self.specs |= {value: graph.values[name] for name, value in self.conditioning.items()}
        self.inputs = ("noise", *self.conditioning.values())
        self.image = "noise"
        self._entering = [Term("noise", 1.0)]  # what enters the network at the current step

    def emit_trajectory(self, sampler: SamplerReading) -> None:
        """Emit all steps, from the noise to the image."""
        latents = ["noise"]
        if sampler.initial_scale != 1.0:
            latents = [self._combine("x0", self._latent, [Term("noise", sampler.initial_scale)], 0)]
        for plan in self.plans:
            self._entering = self._input_terms(plan.step, sampler, latents)
            if plan.is_call:
                self._emit_graphs(plan)
            target = f"x{plan.step + 1}"
            if isinstance(sampler, OpaqueSampler):
                output = self._combine(f"e{plan.step}", self._latent, self._output_terms(plan.step, 1.0), plan.step)
                self.specs[target] = self._latent
                self.calls.append(Sample(plan.step, latents[-1], output, target))
            else:
                terms = self._update_terms(plan.step, sampler.updates[plan.step], latents)
                self._combine(target, self._latent, terms, plan.step)
            latents.append(target)
        self.image = latents[-1]

    def _combine(self, target: str, spec: TensorSpec, terms: list[Term], step: int, copies: int = 1) -> str:
        if target not in self.specs:
            self.specs[target] = spec
            self.calls.append(Combine(target, tuple(terms), step, copies))
        return target

    def _input_terms(self, step: int, sampler: SamplerReading, latents: Sequence[str]) -> list[Term]:
        if isinstance(sampler, OpaqueSampler) or not sampler.inputs:
            return [Term(latents[-1], sampler.input_scales[step])]
        return self._update_terms(step - 1, sampler.inputs[step], latents)

    def _update_terms(self, newest: int, update: Update, latents: Sequence[str]) -> list[Term]:
        """The terms of a combination of all latents so far and the outputs up to step ``newest``."""
        terms = [Term(latents[-1 - j], c) for j, c in enumerate(update.latents) if c != 0.0]
        for j, c in enumerate(update.outputs):
            if c != 0.0:
                terms += self._output_terms(newest - j, c)
        return merge_terms(terms)

    def _output_terms(self, step: int, coefficient: float) -> list[Term]:
        """``coefficient`` times the guided output of ``step``: u + scale * (c - u), from its backup where reused."""
        sources: Sequence[tuple[int, float]] = [(step, 1.0)]
        if not self.schedule.is_computed(step, PREDICTION):
            sources = self.schedule.sources(step, PREDICTION)
        name = self.graph.prediction
        channels = self.schedule.contract.latent_shape[0]
        # A model with a learned sigma predicts twice as many channels. The sampler needs the first half.
        has_more = self.graph.values[name].shape[1] != channels
        plain = Term("", 0.0, channels=channels if has_more else None)
        terms = []
        for source, share in sources:
            c = coefficient * share
            value = replace(plain, slot=f"{name}@{source}")
            if self.schedule.contract.guidance == "concat":
                terms.append(replace(value, constant=c, guided=-c, half="first"))
                terms.append(replace(value, constant=0.0, guided=c, half="second"))
            else:
                terms.append(replace(value, constant=c))
        return terms

    def _emit_graphs(self, plan: StepPlan) -> None:
        for index in self.layouts.by_step[plan.step]:
            graph = self.layouts.graphs[index]
            inputs = [(name, self._network_input(name, plan.step)) for name in graph.inputs]
            inputs += [(name, self._read(name, plan.step)) for name in graph.reads]
            outputs = [(name, f"{name}@{plan.step}") for name in graph.writes]
            for name, value in outputs:
                self.specs[value] = self._stored_spec(name)
            self.calls.append(
                Run(
                    graph=graph.name,
                    step=plan.step,
                    timestep=self.schedule.contract.sampler.timesteps[plan.step],
                    inputs=tuple((name, value) for name, value in inputs if name != TIMESTEP),
                    outputs=tuple(outputs),
                )
            )
        for name in sorted(plan.writes):
            self._emit_residual(name, plan.step)

    def _stored_spec(self, name: str) -> TensorSpec:
        if name in self.graph.values:
            return self.graph.values[name]
        return self.graph.values[self.graph.block_of_name[block_of_stored(self.graph, name)].features[0]]

    def _network_input(self, name: str, step: int) -> str:
        if name in self.conditioning:
            return self.conditioning[name]
        if name == TIMESTEP:
            return ""
        spec = self.graph.values[name]
        copies = self.schedule.contract.rows_per_image
        is_latent = self._entering == [Term(self._entering[0].slot, 1.0)]
        if copies == 1 and is_latent and spec.dtype == self._latent.dtype:
            return self._entering[0].slot
        return self._combine(f"in{step}", spec, self._entering, step, copies)

    def _read(self, name: str, step: int) -> str:
        """The value of a graph's input at ``step``: a value of this step, or a backup."""
        return self._value(name, step) if self.layouts.layout == "segments" else self._backup(name, step)

    def _value(self, name: str, step: int) -> str:
        """A value between graphs at ``step``. A reused block gives its backup, or its input plus its residual."""
        if any(name == spec.name for spec in self.graph.inputs):
            return self._network_input(name, step)
        owner = self.graph.block_of_feature.get(name)
        if owner is None or self.schedule.is_computed(step, owner):
            return f"{name}@{step}"
        if not is_residual(self.graph, owner, self.schedule.kind):
            return self._backup(name, step)
        entry = self.graph.block_of_name[owner].residual_input
        assert entry is not None
        terms = [Term(self._value(entry, step), 1.0), Term(self._backup(residual_name(owner), step), 1.0)]
        return self._combine(f"{name}@{step}~", self.graph.values[name], terms, step)

    def _backup(self, name: str, step: int) -> str:
        block = block_of_stored(self.graph, name)
        sources = self.schedule.sources(step, block)
        if len(sources) == 1 and sources[0][1] == 1.0:
            return f"{name}@{sources[0][0]}"
        terms = [Term(f"{name}@{source}", c) for source, c in sources]
        return self._combine(f"{name}@{step}~", self._stored_spec(name), terms, step)

    def _emit_residual(self, name: str, step: int) -> None:
        """Combine output minus input of a block, unless a graph gives that residual itself."""
        value = f"{name}@{step}"
        if value in self.specs:
            return
        block = self.graph.block_of_name[block_of_stored(self.graph, name)]
        assert block.residual_input is not None
        entry = self._value(block.residual_input, step)
        terms = [Term(f"{block.features[0]}@{step}", 1.0), Term(entry, -1.0)]
        self._combine(value, self._stored_spec(name), terms, step)


def merge_terms(terms: Sequence[Term]) -> list[Term]:
    """Add the coefficients of terms that take the same part of the same value."""
    merged: dict[tuple[str, str, int | None], Term] = {}
    for term in terms:
        key = (term.slot, term.half, term.channels)
        before = merged.get(key)
        merged[key] = (
            term
            if before is None
            else replace(before, constant=before.constant + term.constant, guided=before.guided + term.guided)
        )
    return list(merged.values())
