"""Draw the pictures of the documentation from real schedules of digits-unet.

    python docs/drawings.py            draw everything
    python docs/drawings.py --quick    draw only what needs no export

Two schedules are the source of every picture. Both came from the gradient search:

    dipgo-deploy search digits-unet --method dipgo --ratio 0.6 --steps 6 --out docs/pictures/six-steps.json
    dipgo-deploy search digits-unet --method dipgo --ratio 0.8 --out docs/pictures/fifty-steps.json

1. ``Lowered`` traces the model and lowers the six-step schedule, one stage of lowering after the other.
2. Each function of ``DIAGRAMS`` draws one stage. The result depends on the schedule and the trace only.
3. ``draw_bundle`` and ``draw_overview`` export bundles and generate images first.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from svg import ACCENT, BLUE, FAINT, INK, MUTED, PALE, Svg

import dipgo_deploy as dipgo
from dipgo_deploy.core.files import load_schedule
from dipgo_deploy.core.liveness import plan_steps, pruned_ratio
from dipgo_deploy.core.program import Call, Combine, Run
from dipgo_deploy.core.schedule import Schedule, full_schedule
from dipgo_deploy.lowering.emission import Emission
from dipgo_deploy.lowering.folding import drop_unused, fold, reads_of, writes_of
from dipgo_deploy.lowering.layouts import plan_subnets
from dipgo_deploy.lowering.slots import assign_slots
from dipgo_deploy.models.sampler_coefficients import read_sampler
from dipgo_deploy.runtime import GenerateOptions

PICTURES = Path(__file__).parent / "pictures"

_SHORT = {"down_blocks.": "down ", "up_blocks.": "up ", "mid_block": "mid", "prediction": "prediction"}


class Lowered:
    """One schedule after every stage of lowering."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.model = dipgo.load_model("digits-unet")
        self.blocks = dipgo.trace(self.model, granularity=schedule.granularity).blocks
        self.plans = plan_steps(schedule, self.blocks)
        self.emission = Emission(schedule, self.blocks, self.plans, plan_subnets(schedule, self.blocks, self.plans))
        self.emission.emit_trajectory(read_sampler(schedule.contract.sampler))

    @cached_property
    def emitted(self) -> Sequence[Call]:
        """The calls before folding, over values that are written once."""
        return drop_unused(self.emission.calls, [self.emission.image])

    @cached_property
    def folded(self) -> Sequence[Call]:
        """The calls after folding."""
        return drop_unused(fold(self.emission.calls, self.emission.image), [self.emission.image])

    @cached_property
    def assignment(self) -> tuple:
        """Slots, calls over slots, and the slot of every value."""
        emission = self.emission
        return assign_slots(self.folded, emission.specs, emission.inputs, emission.image)

    def age(self, step: int, block: str) -> int:
        """How many steps ago ``block`` was computed last."""
        return step - max(s for s in range(step + 1) if self.schedule.is_computed(s, block))


def draw_blocks(lowered: Lowered) -> tuple[Svg, float]:
    """Every block with its share of the MACs and its features."""
    svg, blocks = Svg("The blocks of digits-unet"), lowered.blocks
    svg.text(14, 26, "Blocks of digits-unet", bold=True, size=14)
    svg.text(14, 44, "share of one call's MACs, and the features of each block", fill=MUTED)
    largest = max(block.macs.papers for block in blocks.blocks)
    for row, block in enumerate(blocks.blocks):
        y = 66 + 32 * row
        svg.text(14, y + 11, short(block.name))
        svg.rect(96, y, max(2, 120 * block.macs.papers / largest), 14, BLUE)
        svg.text(100 + 120 * block.macs.papers / largest, y + 11.5, f"{block.macs.papers / blocks.macs.papers:.0%}")
        shapes = [
            "\N{MULTIPLICATION SIGN}".join(str(dim) for dim in blocks.values[name].shape[1:]) for name in block.features
        ]
        for line, shape in enumerate(shapes):
            svg.text(386, y + 11 + 14 * (line - (len(shapes) - 1) / 2), shape, anchor="end", fill=MUTED, mono=True)
    return svg, 66 + 32 * len(blocks.blocks) + 2


def draw_schedule(lowered: Lowered) -> tuple[Svg, float]:
    """Blocks by steps: computed cells are dark, reused cells show how old the feature is."""
    svg, schedule = Svg("A schedule of six steps"), lowered.schedule
    left, top, wide, high = 96, 84, 48, 24
    svg.text(14, 26, "A schedule: 6 steps of digits-unet", bold=True, size=14)
    legend(svg, 14, 36, [(BLUE, "computed"), (PALE, "reused, with its age in steps")])
    svg.text(14, top - 8, "step", fill=MUTED)
    for step in range(schedule.steps):
        svg.text(left + wide * (step + 0.5), top - 8, str(step), anchor="middle", fill=MUTED)
    for row, block in enumerate(schedule.blocks):
        y = top + high * row
        svg.text(14, y + 16, short(block))
        for step in range(schedule.steps):
            computed = schedule.is_computed(step, block)
            svg.rect(left + wide * step + 1, y + 1, wide - 2, high - 2, BLUE if computed else PALE)
            if not computed:
                svg.text(left + wide * (step + 0.5), y + 16.5, str(lowered.age(step, block)), anchor="middle")
    bottom = top + high * len(schedule.blocks)
    svg.text(14, bottom + 20, "call", fill=MUTED)
    for plan in lowered.plans:
        words, fill = ("yes", INK) if plan.is_call else ("none", MUTED)
        svg.text(left + wide * (plan.step + 0.5), bottom + 20, words, anchor="middle", fill=fill)
    return svg, bottom + 34


def draw_liveness(lowered: Lowered) -> tuple[Svg, float]:
    """Which features are kept, from the step that writes to the last step that reads."""
    svg, schedule = Svg("Liveness of the features"), lowered.schedule
    left, top, wide, high = 96, 84, 48, 24
    svg.text(14, 26, "Liveness: which features are kept", bold=True, size=14)
    svg.circle(20, 43, 4, "#fff", MUTED)
    svg.text(30, 47, "dropped at once")
    svg.line(142, 43, 168, 43, BLUE, 8)
    svg.text(176, 47, "kept until the last reader")
    svg.text(14, top - 8, "step", fill=MUTED)
    for step in range(schedule.steps):
        svg.text(left + wide * (step + 0.5), top - 8, str(step), anchor="middle", fill=MUTED)
    for row, block in enumerate(lowered.blocks.blocks):
        y = top + high * row + high / 2
        svg.text(14, y + 4, short(block.name))
        svg.line(left, y, left + wide * schedule.steps, y, FAINT)
        for plan in lowered.plans:
            if block.name in plan.reach.computes:
                _draw_life(svg, lowered, block.features, plan.step, left, wide, y)
    return svg, top + high * len(lowered.blocks.blocks) + 12


def _draw_life(
    svg: Svg, lowered: Lowered, features: Sequence[str], step: int, left: float, wide: float, y: float
) -> None:
    """One computed feature: a bar to its last reader, or a hollow dot."""
    readers = _readers(lowered, features, step)
    x = left + wide * (step + 0.5)
    if readers:
        svg.line(x, y, left + wide * (max(readers) + 0.5), y, BLUE, 8)
    svg.circle(x, y, 5, BLUE if readers else "#fff", BLUE if readers else MUTED)


def _readers(lowered: Lowered, features: Sequence[str], step: int) -> list[int]:
    """Later steps that read what ``step`` computed, and the step itself for the prediction."""
    schedule = lowered.schedule
    if features == lowered.blocks.block_of_name["prediction"].features:
        later = range(step, schedule.steps)
        reused = [s for s in later if not schedule.is_computed(s, "prediction")]
        return [step, *(s for s in reused if schedule.sources(s, "prediction")[0][0] == step)]
    block = lowered.blocks.block_of_feature[features[0]]
    wanted = [plan.step for plan in lowered.plans if set(features) & plan.reach.reads and plan.step > step]
    return [s for s in wanted if schedule.sources(s, block)[0][0] == step]


def draw_folding(lowered: Lowered) -> tuple[Svg, float]:
    """The calls before folding next to the calls after folding."""
    svg = Svg("Folding")
    svg.text(14, 26, "Folding: combinations in a row become one", bold=True, size=14)
    svg.text(14, 44, "x: latents, e: predictions, h: the kept feature of up 1", fill=MUTED)
    ends = {name: index for index, call in enumerate(lowered.folded) for name in writes_of(call)}
    folded_y: dict[int, list[float]] = {}
    for index, call in enumerate(lowered.emitted):
        y = 76 + 34 * index
        _draw_call(svg, call, 14, y, 180)
        target = next((e for name, e in ends.items() if name in writes_of(call)), None)
        home = target if target is not None else _home(lowered.folded, call)
        folded_y.setdefault(home, []).append(y)
    svg.text(14, 68, f"before: {len(lowered.emitted)} calls", fill=MUTED)
    svg.text(206, 68, f"after: {len(lowered.folded)} calls", fill=MUTED)
    for index, call in enumerate(lowered.folded):
        rows = folded_y[index]
        y = sum(rows) / len(rows)
        _draw_call(svg, call, 206, y, 180)
        for row in rows:
            svg.line(194, row + 13, 206, y + 13, FAINT if len(rows) == 1 else ACCENT, 1.5)
    return svg, 76 + 34 * len(lowered.emitted) + 6


def _home(folded: Sequence[Call], call: Call) -> int:
    """The folded combination that a combination of an earlier step went into."""
    return next(i for i, other in enumerate(folded) if isinstance(other, Combine) and other.step >= call.step)


def draw_program(lowered: Lowered) -> tuple[Svg, float]:
    """The finished program: calls over slots."""
    svg = Svg("A program")
    slots, calls, _ = lowered.assignment
    svg.text(14, 26, f"The program: {len(calls)} calls over {len(slots)} slots", bold=True, size=14)
    legend(svg, 14, 36, [(BLUE, "run a graph"), (PALE, "combine slots")])
    for index, call in enumerate(calls):
        y = 64 + 34 * index
        svg.text(14, y + 17, str(index), fill=MUTED)
        _draw_call(svg, call, 34, y, 352)
    return svg, 64 + 34 * len(calls) + 6


def draw_slots(lowered: Lowered) -> tuple[Svg, float]:
    """Slots by calls: which value lives where, and when."""
    svg = Svg("Slots")
    slots, calls, slot_of_value = lowered.assignment
    left, top, wide, high = 136, 92, 34, 30
    count, end = len(slot_of_value), len(calls)
    svg.text(14, 26, f"Slots: {count} values share {len(slots)} buffers", bold=True, size=14)
    svg.text(14, 44, "x: latents, e: predictions, h: the kept feature of up 1,", fill=MUTED)
    svg.text(14, 60, "c: conditioning", fill=MUTED)
    svg.text(14, top - 8, "call", fill=MUTED)
    for index in range(end):
        svg.text(left + wide * (index + 1), top - 8, str(index), anchor="middle", fill=MUTED)
    sizes = lowered.schedule.contract.sizes(1)
    rows = {slot.name: row for row, slot in enumerate(slots)}
    for slot in slots:
        y = top + high * rows[slot.name]
        svg.text(14, y + 19, slot.name, mono=True)
        svg.text(108, y + 19, f"{slot.nbytes(sizes) / 1024:g} KiB", anchor="end", fill=MUTED)
        svg.line(left, y + high / 2, left + wide * (end + 1), y + high / 2, FAINT)
    for value, slot in slot_of_value.items():
        first, last = lifetime(lowered, value)
        x1, x2 = left + wide * (first + 1), left + wide * (last + 1)
        y = top + high * rows[slot]
        svg.rect(x1 - 14, y + 3, x2 - x1 + 28, high - 6, PALE, round_by=5, line=BLUE)
        svg.text((x1 + x2) / 2, y + 19, letter(value), anchor="middle")
    return svg, top + high * len(slots) + 12


def lifetime(lowered: Lowered, value: str) -> tuple[int, int]:
    """First and last call of a value. The caller writes before call 0, and conditioning lives to the end."""
    calls, emission = lowered.folded, lowered.emission
    first = next((i for i, call in enumerate(calls) if value in writes_of(call)), -1)
    last = max([first, *(i for i, call in enumerate(calls) if value in reads_of(call))])
    outlives = value == emission.image or value in emission.inputs[1:]
    return first, len(calls) - 1 if outlives else last


DIAGRAMS: dict[str, Callable[[Lowered], tuple[Svg, float]]] = {
    "blocks": draw_blocks,
    "schedule": draw_schedule,
    "liveness": draw_liveness,
    "folding": draw_folding,
    "program": draw_program,
    "slots": draw_slots,
}


def short(block: str) -> str:
    """A block's name as a row label."""
    for start, label in _SHORT.items():
        block = block.replace(start, label)
    return block


def letter(value: str) -> str:
    """A value of lowering as a letter with its step."""
    name, _, step = value.partition("@")
    letters = {"prediction": "e", "up_blocks.1:0": "h", "noise": "noise", "c:encoder_hidden_states": "c"}
    return letters.get(name, name) + step


def legend(svg: Svg, x: float, y: float, entries: Sequence[tuple[str, str]]) -> None:
    """Coloured squares with their meaning, in one line."""
    for colour, words in entries:
        svg.rect(x, y, 13, 13, colour)
        svg.text(x + 19, y + 11, words)
        x += 38 + 6.4 * len(words)


def _draw_call(svg: Svg, call: Call, x: float, y: float, width: float) -> None:
    """A call as a box with one line of text."""
    is_run = isinstance(call, Run)
    svg.rect(x, y, width, 26, BLUE if is_run else PALE, round_by=4)
    narrow = width < 200
    if isinstance(call, Run):
        sources = ", ".join(letter(value) for _, value in call.inputs)
        results = ", ".join(letter(value) for _, value in call.outputs)
        words = f"{sources} → {call.graph} → {results}"
        words = f"{call.graph.replace('subnet_0', 'g')}({sources}) → {results}" if narrow else words
        if not narrow:
            svg.text(x + width - 10, y + 17, f"t = {call.timestep:g}", anchor="end", fill="#fff")
    else:
        words = formula(call)
    svg.text(x + 8, y + 17, words, size=11.5 if narrow else 12.5, fill="#fff" if is_run else INK)


def formula(call: Combine) -> str:
    """A combination as a formula."""
    parts = [f"{abs(term.constant):.3f}·{letter(term.slot)}" for term in call.terms]
    signs = ["" if term.constant >= 0 else "\N{MINUS SIGN}" for term in call.terms]
    words = signs[0] + parts[0]
    for sign, part in zip(signs[1:], parts[1:], strict=True):
        words += f" {sign or '+'} {part}"
    return f"{letter(call.target)} = {words}"


def draw_bundle(folder: Path) -> tuple[Svg, float]:
    """The files of a bundle, by what they are for."""
    svg = Svg("A bundle")
    meanings = {
        "bundle.json": "manifest, written last", "schedule.json": "what is computed when",
        "program.json": "the calls over slots", "blocks.json": "what can be skipped",
        "unet/*.safetensors": "all weights, once", "unet/subnet_*.onnx": "two graphs, no weights",
        "unet/master.onnx": "the source of every cut", "model_index.json": "a diffusers folder too",
    }  # fmt: skip
    svg.text(14, 26, "The bundle of this schedule", bold=True, size=14)
    for row, (pattern, meaning) in enumerate(meanings.items()):
        y = 50 + 24 * row
        files = sorted(folder.glob(pattern))
        size = sum(file.stat().st_size for file in files)
        svg.text(14, y + 4, pattern, mono=True, size=11.5)
        svg.text(232, y + 4, bytes_text(size), anchor="end", fill=MUTED)
        svg.text(242, y + 4, meaning)
    return svg, 50 + 24 * len(meanings) + 2


def shape_text(shape: Sequence[int | str]) -> str:
    """A shape with multiplication signs."""
    return "\N{MULTIPLICATION SIGN}".join(str(dim) for dim in shape)


def bytes_text(count: int) -> str:
    """A size in kB or MB."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{max(1, round(count / 1e3))} kB"


def draw_overview(lowered: Lowered, full: np.ndarray, made: np.ndarray) -> tuple[Svg, float]:
    """The README's picture: a 50-step schedule, and ten digits of the full run and of the schedule."""
    svg, schedule = Svg("A schedule, and the images of the full run and of the schedule"), lowered.schedule
    left, top, wide, high = 80, 58, 6.12, 13
    ratio, calls = pruned_ratio(schedule, lowered.blocks), sum(plan.is_call for plan in lowered.plans)
    legend(svg, 14, 14, [(BLUE, "computed"), (PALE, "reused")])
    svg.text(386, 25, f"{calls} of {schedule.steps} steps call the network", anchor="end")
    for step in range(0, schedule.steps, 10):
        svg.text(left + wide * step, top - 6, f"step {step}" if not step else str(step), fill=MUTED, size=11)
    for row, block in enumerate(schedule.blocks):
        svg.text(14, top + high * row + 10, short(block), size=11)
        for step in range(schedule.steps):
            colour = BLUE if schedule.is_computed(step, block) else PALE
            svg.rect(left + wide * step, top + high * row, wide - 0.8, high - 1, colour, round_by=0.8)
    y = top + high * len(schedule.blocks) + 14
    for label, detail, images in (("full run", "100% of MACs", full), ("schedule", f"{1 - ratio:.0%} of MACs", made)):
        svg.text(14, y + 15, label, size=11, bold=True)
        svg.text(14, y + 28, detail.replace(" of MACs", " MACs"), size=10.5, fill=MUTED)
        _draw_images(svg, images, left + 6, y, 30)
        y += 38
    return svg, y + 6


def _draw_images(svg: Svg, images: np.ndarray, x: float, y: float, size: float) -> None:
    """Grey images in a row, pixel by pixel, in 16 grey levels. Ink is +1 and paper is -1."""
    levels = np.clip((images[:, 0] + 1) * 8, 0, 15).astype(int)
    pixel = size / levels.shape[-1]
    for level in range(1, 16):
        grey = f"#{255 - 17 * level:02x}" + f"{255 - 17 * level:02x}" * 2
        cells = [
            f"M{x + index * size + column * pixel:.2f} {y + row * pixel:.2f}h{pixel:.2f}v{pixel:.2f}h-{pixel:.2f}z"
            for index, row, column in zip(*np.nonzero(levels == level), strict=True)
        ]
        svg.path("".join(cells), grey)


def _images(lowered: Lowered, schedule: Schedule, folder: Path) -> np.ndarray:
    """One image of each class from a bundle of ``schedule``."""
    bundle = dipgo.load_bundle(dipgo.export(lowered.model, schedule, folder))
    return dipgo.generate(bundle, GenerateOptions(seed=0))


def main(arguments: Sequence[str]) -> None:
    """Draw all pictures."""
    six = Lowered(load_schedule(PICTURES / "six-steps.json"))
    for name, draw in DIAGRAMS.items():
        svg, height = draw(six)
        svg.save(PICTURES / f"{name}.svg", height)
    if "--quick" in arguments:
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        svg, height = draw_bundle(dipgo.export(six.model, six.schedule, folder / "six"))
        svg.save(PICTURES / "bundle.svg", height)
        fifty = Lowered(load_schedule(PICTURES / "fifty-steps.json"))
        schedule = fifty.schedule
        full = full_schedule(schedule.contract, schedule.granularity, schedule.kind, fifty.blocks.block_names)
        images = [_images(fifty, one, folder / str(index)) for index, one in enumerate((full, schedule))]
        svg, height = draw_overview(fifty, *images)
        svg.save(PICTURES / "overview.svg", height)


if __name__ == "__main__":
    main(sys.argv[1:])
