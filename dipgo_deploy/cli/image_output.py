"""Where ``generate`` writes: one picture of all images, one array, or a file for each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any

from dipgo_deploy.cli.replacing import check_picture_target
from dipgo_deploy.core.disk import check_target
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.file_kind import file_kind

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Drawn", "ImageOutput", "image_output"]

_PICTURES = (".png", ".jpg", ".jpeg")
_ARRAY = ".npy"
_COLUMNS = 16
"""Images in the widest grid. In narrower grids each row is one class or prompt."""


@dataclass(frozen=True)
class Drawn:
    """What each image shows.

    Attributes:
        seeds: seed of each image.
        subjects: class or number of the prompt of each image. None for a model without classes.
        prompts: the prompts by number, empty for classes.
    """

    seeds: Sequence[int]
    subjects: Sequence[int | None]
    prompts: Sequence[str] = ()

    def label(self, index: int) -> str:
        """Two lines: class or prompt, and seed. One line for a model without classes."""
        subject = self.subjects[index]
        what = "" if subject is None else self.prompts[subject] if self.prompts else f"class {subject}"
        return f"{' '.join(what.split())}\nseed {self.seeds[index]}" if what else f"seed {self.seeds[index]}"

    def name(self, index: int) -> str:
        """A file name without suffix, such as ``class-7-seed-3``."""
        subject, seed = self.subjects[index], self.seeds[index]
        what = "" if subject is None else f"{'prompt' if self.prompts else 'class'}-{subject}-"
        return f"{what}seed-{seed}"

    def note(self, index: int) -> dict[str, Any]:
        """Seed and class or prompt, for the metadata of a file."""
        subject, seed = self.subjects[index], self.seeds[index]
        if subject is None:
            return {"seed": seed}
        return {"seed": seed, **({"prompt": self.prompts[subject]} if self.prompts else {"class": subject})}


@dataclass(frozen=True)
class ImageOutput:
    """A file for everything, or a pattern with a file for each image.

    Attributes:
        text: what the user typed.
        pattern: the path, with fields such as ``{seed}`` if every image gets a file of its own.
    """

    text: str
    pattern: str

    @property
    def is_separate(self) -> bool:
        """Whether every image gets a file of its own."""
        return bool(_fields(self.pattern))

    @property
    def is_array(self) -> bool:
        """Whether latents are written, not pictures."""
        return self.pattern.endswith(_ARRAY)

    def paths(self, drawn: Drawn) -> list[Path]:
        """The file of each image, or the only file. Raises UsageError for a field that no image has."""
        if not self.is_separate:
            return [Path(self.pattern)]
        if "class" in _fields(self.pattern) and None in drawn.subjects:
            raise UsageError(f"--out {self.text} has the field {{class}}, but the model has no classes: use {{seed}}")
        return [Path(self.pattern.format(**_values(drawn, index))) for index in range(len(drawn.seeds))]

    def check(self, force: bool) -> None:
        """Before a bundle is loaded, check the place of the output.

        Args:
            force: whether any file may be replaced.

        Raises:
            InputError: the place cannot be written, or a file there is not ours.
        """
        if not self.is_separate:
            _check_file(Path(self.pattern), force)
            return
        # The folders above the first field are known before the number of images.
        check_target(Path(self.pattern.partition("{")[0] + "x").parent / ".check")

    def check_files(self, drawn: Drawn, force: bool) -> None:
        """Check every file before images are drawn. Raises the errors of ``check`` and ``paths``."""
        for path in self.paths(drawn):
            _check_file(path, force)

    def write(self, images: np.ndarray, drawn: Drawn, columns: int, scale: int) -> list[Path]:
        """Write images or latents.

        Args:
            images: (N, C, H, W) in [-1, 1], or latents of any shape with N in front.
            drawn: what each image shows.
            columns: images in a row of the grid.
            scale: pixels of the grid per pixel of an image. Separate files keep their size.

        Returns:
            The files.
        """
        from dipgo_deploy.bench.figure import image_grid
        from dipgo_deploy.bench.image_files import save_array, save_image

        paths, notes = self.paths(drawn), [drawn.note(index) for index in range(len(images))]
        if self.is_separate:
            for image, path, note in zip(images, paths, notes, strict=True):
                save_array(image, path) if self.is_array else save_image(image, path, note)
        elif self.is_array:
            save_array(images, paths[0])
        else:
            labels = [drawn.label(index) for index in range(len(images))]
            image_grid(images, paths[0], min(columns, _COLUMNS), scale, labels, {"images": notes})
        return paths


def _check_file(path: Path, force: bool) -> None:
    """Check that a file can be written, and that it replaces only a picture of ours or an array."""
    check_target(path)
    if path.suffix == _ARRAY and file_kind(path) == "an array of NumPy":
        return
    check_picture_target(path, force)


_FIELDS = ("index", "seed", "class", "prompt", "name")


def _values(drawn: Drawn, index: int) -> dict[str, int | str | None]:
    subject = drawn.subjects[index]
    values = (index, drawn.seeds[index], subject, subject, drawn.name(index))
    return dict(zip(_FIELDS, values, strict=True))


def image_output(text: str, by_prompt: bool) -> ImageOutput:
    """Read ``--out`` of ``generate``.

    Args:
        text: a picture (.png, .jpg), an array (.npy), a folder, or a pattern with fields in braces.
        by_prompt: whether images are drawn from prompts, not classes.

    Returns:
        Where to write.

    Raises:
        UsageError: another suffix, an unknown field, or a pattern that gives several images one name.
    """
    if text.endswith("/") or Path(text).is_dir():
        folder = text.rstrip("/").replace("{", "{{").replace("}", "}}")
        return ImageOutput(text, f"{folder}/{{name}}.png")
    if Path(text).suffix.lower() not in (*_PICTURES, _ARRAY):
        raise UsageError(
            f"--out {text} ends in none of {', '.join((*_PICTURES, _ARRAY))}: name a picture, an array of latents, or "
            "a folder with / at its end"
        )
    _check_fields(text, by_prompt)
    return ImageOutput(text, text)


def _check_fields(text: str, by_prompt: bool) -> None:
    names, known = _fields(text), ", ".join(f"{{{name}}}" for name in _FIELDS)
    if unknown := sorted(names.difference(_FIELDS)):
        raise UsageError(f"--out {text} has the field {{{unknown[0]}}}: use {known}")
    missing = "class" if by_prompt else "prompt"
    if missing in names:
        raise UsageError(
            f"--out {text} has the field {{{missing}}}, but no {missing} is drawn: use {{index}} or {{seed}}"
        )
    if names and names.isdisjoint(("index", "seed", "name")):
        raise UsageError(f"--out {text} gives several images one name: add {{index}}, {{seed}} or {{name}}")
    try:
        text.format(**_values(Drawn([0], [0]), 0))
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"--out {text} is no pattern ({error}): give fields such as {{seed}} or {{index:04d}}"
        ) from None


def _fields(pattern: str) -> set[str]:
    try:
        return {name for _, name, _, _ in Formatter().parse(pattern) if name is not None}
    except ValueError as error:
        raise UsageError(f"--out {pattern} is no pattern ({error}): double a brace that belongs to the name") from None
