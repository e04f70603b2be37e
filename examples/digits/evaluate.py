"""The numbers of the model cards: `python -m examples.digits.evaluate MODEL_DIR`.

1. Accuracy: the share of class-conditional samples whose class the shipped classifier recognizes.
2. Convergence: the PSNR between images of DDIM with few steps and with 1000, from the same noise.
3. Fréchet distance between samples and all real digits, in the classifier's features.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from dipgo_deploy.core.errors import DipgoError
from dipgo_deploy.core.progress import Progress, Work, finish
from dipgo_deploy.models.digits import CLASSES, accuracy, frechet_distance, load_classifier, load_split
from examples.digits.denoisers import load_denoiser
from examples.digits.sampling import cycle_labels, draw_noise, sample

__all__ = ["EvaluateOptions", "Scores", "evaluate", "psnr", "save_grid"]

GRID_ROWS = 8


@dataclass(frozen=True)
class EvaluateOptions:
    """Settings of an evaluation.

    Attributes:
        samples: images at each guidance scale.
        converged_samples: number of images that are also drawn with `converged_steps`.
        converged_steps: DDIM steps of the converged images.
        steps: DDIM steps of the samples.
        guidances: guidance scales. `samples.png` shows the last one.
        seed: seed of the initial noise.
    """

    samples: int = 512
    converged_samples: int = 20
    converged_steps: int = 1000
    steps: int = 50
    guidances: tuple[float, ...] = (1.0, 2.0)
    seed: int = 1


@dataclass(frozen=True)
class Scores:
    """The measurements at one guidance scale. Accuracy is from 0 to 1, PSNR percentiles are in dB."""

    guidance: float
    accuracy: float
    psnr_p10: float
    psnr_p50: float
    frechet: float


def evaluate(folder: Path, options: EvaluateOptions) -> Work[tuple[Scores, ...]]:
    """Evaluate the model in `folder` at every guidance scale. Progress is yielded after each scale.

    It also writes `samples.png` into `folder`, ten classes wide and eight samples high.

    Args:
        folder: a folder of a reference denoiser.
        options: the settings.

    Returns:
        Scores by guidance scale.

    Raises:
        InputError: `folder` holds no reference denoiser.
    """
    denoiser, scheduler = load_denoiser(folder)
    classifier = load_classifier()
    noise, labels = draw_noise(options.samples, options.seed), cycle_labels(options.samples)
    few, real = options.converged_samples, load_split("all").images
    results: list[Scores] = []
    for guidance in options.guidances:
        images = sample(denoiser, scheduler, noise, labels, steps=options.steps, guidance=guidance)
        converged = sample(
            denoiser, scheduler, noise[:few], labels[:few], steps=options.converged_steps, guidance=guidance
        )
        decibels = psnr(images[:few], converged)
        images = images.clamp(-1, 1)
        with torch.no_grad():
            distance = frechet_distance(classifier.features(images), classifier.features(real))
        low, middle = decibels.quantile(torch.tensor([0.1, 0.5])).tolist()
        results.append(Scores(guidance, accuracy(classifier, images, labels), low, middle, distance))
        yield Progress("evaluation", len(results), len(options.guidances), f"guidance {guidance:.1f}")
    save_grid(images[: CLASSES * GRID_ROWS], folder / "samples.png")
    return tuple(results)


def psnr(images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """PSNR (N,) in dB of images (N, ...), clamped and mapped from [-1, 1] to [0, 1]."""
    difference = (images.clamp(-1, 1) - reference.clamp(-1, 1)) / 2
    return -10 * difference.square().flatten(1).mean(1).clamp(min=1e-12).log10()


def save_grid(images: torch.Tensor, path: Path, zoom: int = 4, gap: int = 4) -> None:
    """Save images (N, 1, 16, 16) in [-1, 1] as one grey PNG, ten per row, black ink on white paper."""
    large = F.interpolate(images, scale_factor=zoom, mode="bicubic", align_corners=False).clamp(-1, 1)
    padded = F.pad(large.squeeze(1), (gap,) * 4, value=-1.0)
    rows = [torch.cat(list(row), 1) for row in padded.split(CLASSES)]
    grey = (1 - torch.cat(rows, 0)) / 2 * 255
    Image.fromarray(grey.round().byte().numpy()).save(path, optimize=True)


def main() -> None:
    """Parse the command line, evaluate one model folder and print one line for each guidance scale."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of digits-unet or digits-dit")
    parser.add_argument("--samples", type=int, default=EvaluateOptions.samples, help="images per guidance scale")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    options = EvaluateOptions(
        samples=arguments.samples, converged_samples=min(EvaluateOptions.converged_samples, arguments.samples)
    )
    try:
        for scores in finish(evaluate(arguments.folder, options)):
            print(
                f"guidance {scores.guidance:.1f}: accuracy {scores.accuracy:.3f}, "
                f"DDIM-{options.steps} against DDIM-1000 PSNR p10 {scores.psnr_p10:.1f} dB "
                f"p50 {scores.psnr_p50:.1f} dB, Fréchet {scores.frechet:.3f}",
                flush=True,
            )
    except DipgoError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
