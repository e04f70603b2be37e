"""The descent: one Adam over all numbers, with warm-up, cosine and a moving average.

Every few steps the average draws the held-out images. The best average so far is the result, never worse than the
start. A step depends on the seed and its number alone, so a training that was interrupted continues to the same result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.learned_sampler import LearnedSampler
from dipgo_deploy.core.metrics import psnr_db
from dipgo_deploy.core.progress import Progress, Work
from dipgo_deploy.search.fit.teacher import Images
from dipgo_deploy.search.learned.chain import LearnedChain
from dipgo_deploy.search.learned.losses import Loss
from dipgo_deploy.search.learned.options import LearnedOptions
from dipgo_deploy.search.learned.workers import Workers

__all__ = ["Pairs", "Training"]

_TRY_EVERY = 10
"""Steps between looks at the held-out images."""

_BETAS = (0.9, 0.99)
"""Decays of Adam. A sampler has few numbers, and a training few steps, so the second is shorter than usual."""

_BATCH = 32
"""Held-out images of one call."""


@dataclass(frozen=True)
class Pairs:
    """Images that are drawn, and the teacher's (B, C, ...)."""

    images: Images
    targets: torch.Tensor

    def chosen(self, indices: list[int]) -> Pairs:
        """Some of the pairs."""
        seeds, labels = (tuple(values[i] for i in indices) for values in (self.images.seeds, self.images.labels))
        part = Images(self.images.model, self.images.contract, seeds, labels, self.images.guidance_scale)
        return Pairs(part, self.targets[indices])


class Training:
    """One training.

    Args:
        chain: the sampler and its corrections.
        learned_from, held_out: pairs to learn from, and pairs that decide.
        loss: compares images.
        options: sizes and rates.
        seed: of the batches.
        workers: the processes.
        times: greatest and smallest time of the network.
    """

    def __init__(
        self, chain: LearnedChain, learned_from: Pairs, held_out: Pairs, loss: Loss, options: LearnedOptions,
        seed: int, workers: Workers, times: tuple[float, float],
    ) -> None:  # fmt: skip
        self.chain, self.learned_from, self.held_out, self.loss = chain, learned_from, held_out, loss
        self.options, self.seed, self.workers, self.limits = options, seed, workers, times
        self.parameters = list(chain.parameters())
        self.optimiser = torch.optim.Adam(self.parameters, lr=options.learning_rate, betas=_BETAS)
        self.average = self._numbers()
        self.best = self._numbers()
        self.best_score = -math.inf
        self.done = 0

    def run(self) -> Work[LearnedSampler]:
        """Make the remaining steps.

        Returns:
            A generator of Progress whose result is the best sampler.
        """
        if math.isinf(self.best_score):
            with torch.no_grad():
                self.best_score = self._score()
        total = self.options.iterations
        while self.done < total:
            self._step()
            self.done += 1
            if self.done % _TRY_EVERY == 0 or self.done == total:
                self._try()
            yield Progress("learning", self.done, total, f"{self.best_score:.2f} dB")
        with torch.no_grad():
            self._write(self.best)
        return self.chain.sampler()

    @property
    def rate(self) -> float:
        """Learning rate of the next step."""
        options = self.options
        warm = min(1.0, (self.done + 1) / max(1, options.warm_up))
        return options.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * self.done / max(1, options.iterations)))

    def _step(self) -> None:
        rng = np.random.default_rng((self.seed, self.done))
        count = min(self.options.batch, len(self.learned_from.targets))
        batch = rng.permutation(len(self.learned_from.targets))[:count].tolist()
        pairs = self.learned_from.chosen(self.workers.part(batch))
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate
        self.optimiser.zero_grad()
        loss = self.loss(self.chain(pairs.images.network(), pairs.images.noise), pairs.targets)
        loss.backward()  # type: ignore[no-untyped-call]
        self.workers.average(parameter.grad for parameter in self.parameters)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.options.clip)
        if not norm.isfinite():
            raise InputError(
                f"the gradient of step {self.done} is not finite: lower the learning rate, or load the model in float32"
            )
        self.optimiser.step()
        self.chain.keep_order(*self.limits)
        with torch.no_grad():
            for kept, parameter in zip(self.average, self.parameters, strict=True):
                kept.lerp_(parameter, 1 - self.options.average)

    @torch.no_grad()
    def _try(self) -> None:
        """Draw the held-out images with the average, and keep the average if it is the best."""
        current = self._numbers()
        self._write(self.average)
        score = self._score()
        if score > self.best_score:
            self.best, self.best_score = self._numbers(), score
        self._write(current)

    @torch.no_grad()
    def psnr(self) -> float:
        """Mean PSNR of the held-out images in dB, whatever the loss."""
        return self._score("log-mse")

    def _score(self, loss: str | None = None) -> float:
        """What decides: the mean PSNR of the held-out images in dB, or the negative of another loss."""
        total, count = 0.0, len(self.held_out.targets)
        for first in range(0, count, _BATCH):
            pairs = self.held_out.chosen(list(range(first, min(first + _BATCH, count))))
            images = self.chain(pairs.images.network(), pairs.images.noise)
            if (loss or self.options.loss) == "log-mse":
                pair = [np.nan_to_num(each.cpu().numpy(), nan=1e6) for each in (images, pairs.targets)]
                score = float(psnr_db(*pair, clip=False).mean())
            else:
                score = -float(self.loss(images, pairs.targets))
            total += score * len(pairs.targets)
        return total / count

    def _numbers(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters]

    def _write(self, numbers: list[torch.Tensor]) -> None:
        for parameter, number in zip(self.parameters, numbers, strict=True):
            parameter.copy_(number)

    def state(self) -> dict[str, torch.Tensor]:
        """Every tensor that the next steps depend on."""
        tensors = {"best_score": torch.tensor(self.best_score, dtype=torch.float64)}
        for index, parameter in enumerate(self.parameters):
            adam = self.optimiser.state.get(parameter, {})
            tensors |= {f"{index}.{name}": value.detach().clone().cpu() for name, value in adam.items()}
            tensors[f"{index}.value"] = parameter.detach().clone().cpu()
            tensors[f"{index}.average"] = self.average[index].clone().cpu()
            tensors[f"{index}.best"] = self.best[index].clone().cpu()
        return tensors

    @torch.no_grad()
    def restore(self, tensors: dict[str, torch.Tensor], done: int) -> None:
        """Continue from a state.

        Args:
            tensors: as ``state`` gave them.
            done: finished steps.

        Raises:
            KeyError, RuntimeError: tensors of another training.
        """
        self.done, self.best_score = done, float(tensors["best_score"])
        for index, parameter in enumerate(self.parameters):
            parameter.copy_(tensors[f"{index}.value"])
            self.average[index].copy_(tensors[f"{index}.average"])
            self.best[index].copy_(tensors[f"{index}.best"])
            names = ("step", "exp_avg", "exp_avg_sq")
            adam = {name: tensors[f"{index}.{name}"] for name in names if f"{index}.{name}" in tensors}
            if adam:
                kept = {name: value.to(parameter.device) if name != "step" else value for name, value in adam.items()}
                self.optimiser.state[parameter] = kept
