"""Wrong input ends in one line on stderr and the documented exit code, never in a traceback or a half-written file."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from dipgo_deploy.bench import write_report
from dipgo_deploy.cli.main import run
from tests.bench.reports import CROWD
from tests.cli.refusal import edit, refused, seal, truncate
from tests.models.pipelines import text_pipeline

ROOT = Path(__file__).parents[2]
FORMATS = ROOT / "docs" / "formats.md"
MODEL = ROOT / "dipgo_deploy" / "models" / "reference" / "digits-unet"


@pytest.fixture
def schedule() -> dict:
    """The hand-written schedule of docs/formats.md."""
    return json.loads(re.search(r"```json\n(.*?)```", FORMATS.read_text(encoding="utf-8"), re.DOTALL).group(1))


def readers(file: Path, folder: Path) -> list[list[object]]:
    """The commands that read a schedule."""
    return [["show", file], ["export", "digits-unet", "--schedule", file, "--out", folder / "bundle"]]


@pytest.mark.parametrize("reader", [0, 1], ids=["show", "export"])
class TestSchedule:
    def test_missing(self, reader, tmp_path, capsys):
        refused(readers(tmp_path / "none.json", tmp_path)[reader], "does not exist", capsys)

    def test_truncated(self, reader, schedule, tmp_path, capsys):
        file = tmp_path / "schedule.json"
        file.write_text(json.dumps(schedule)[:-40])
        refused(readers(file, tmp_path)[reader], "is not valid JSON", capsys)
        assert list(tmp_path.iterdir()) == [file]

    def test_newer_version(self, reader, schedule, tmp_path, capsys):
        file = tmp_path / "schedule.json"
        file.write_text(json.dumps(schedule | {"format_version": "2.0"}))
        refused(readers(file, tmp_path)[reader], "format version 2.0", capsys)

    def test_reads_before_it_wrote(self, reader, schedule, tmp_path, capsys):
        schedule["compute"]["mid_block"] = "00010"
        file = tmp_path / "schedule.json"
        file.write_text(json.dumps(schedule))
        refused(readers(file, tmp_path)[reader], "step 0 reuses mid_block", capsys)

    def test_unknown_field(self, reader, schedule, tmp_path, capsys):
        file = tmp_path / "schedule.json"
        file.write_text(json.dumps(schedule | {"speed": 11}))
        refused(readers(file, tmp_path)[reader], "speed", capsys)


def test_show_refuses_a_foreign_document(tmp_path, capsys):
    file = tmp_path / "package.json"
    file.write_text('{"format": "tarball"}')
    refused(["show", file], "format 'tarball'", capsys)


def test_show_refuses_an_empty_folder(tmp_path, capsys):
    refused(["show", tmp_path], "holds none of", capsys)


def test_several_files_of_which_one_is_no_bench(schedule, tmp_path, capsys):
    bench, file = tmp_path / "bench.json", tmp_path / "schedule.json"
    write_report(CROWD, bench)
    file.write_text(json.dumps(schedule))
    refused(["show", file, bench], "only benches are shown together: name one file", capsys, 2)
    refused(["show", bench, file], "has format 'schedule', expected 'bench'", capsys)


class TestBenchDocument:
    @pytest.fixture
    def bench(self, tmp_path) -> Path:
        write_report(CROWD, tmp_path / "bench.json")
        return tmp_path / "bench.json"

    def test_truncated(self, bench, capsys):
        truncate(bench)
        refused(["show", bench], "is not valid JSON", capsys)

    def test_newer_version(self, bench, capsys):
        edit(bench, lambda document: document.update(schema_version="2.0"))
        refused(["show", bench], "format version 2.0, this program reads 1.3", capsys)

    def test_unknown_field(self, bench, capsys):
        edit(bench, lambda document: document["rows"][0].update(luck=7))
        refused(["show", bench, "--out", bench.parent / "p.png"], "rows.0.luck", capsys)

    def test_of_another_model(self, bench, tmp_path, capsys):
        other = tmp_path / "other.json"
        write_report(CROWD, other)
        edit(other, lambda document: document["contract"].update(model_digest="0" * 64))
        arguments = ["show", bench, other, "--out", tmp_path / "p.png"]
        refused(arguments, "another bench was made for model_digest 000000000000", capsys)

    def test_what_is_no_picture(self, bench, capsys):
        refused(["show", bench, "--out", bench.parent / "p.gif"], "p.gif: rename it", capsys, 2)

    def test_it_is_shown_drawn_and_printed(self, bench, tmp_path, capsys):
        picture = tmp_path / "p.svg"
        assert run(["show", str(bench), str(bench), "--out", str(picture)]) == 0
        text = capsys.readouterr().out
        assert picture.read_text().startswith("<?xml") and text.count("deepcache  ") == 4  # two tables in two parts
        assert run(["show", str(bench), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["document"] == json.loads(bench.read_text())
        assert run(["show", str(bench), str(bench), "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out)["documents"]) == 2


@pytest.mark.parametrize("name", ["none.json", "damaged.json", "other.json"])
def test_bench_refuses_a_schedule_that_does_not_fit(name, bundle_folder, tmp_path, capsys):
    words = {
        "none.json": "does not exist",
        "damaged.json": "is not valid JSON",
        "other.json": "schedule other was made",
    }
    for copy in ("damaged.json", "other.json"):
        shutil.copyfile(bundle_folder / "schedule.json", tmp_path / copy)
    truncate(tmp_path / "damaged.json")
    edit(tmp_path / "other.json", lambda document: document["contract"].update(guidance="none"))
    refused(["bench", bundle_folder, "--with-schedule", tmp_path / name], words[name], capsys)


def test_bench_refuses_bundles_of_different_contracts(bundle_folder, tmp_path, capsys):
    other = Path(shutil.copytree(bundle_folder, tmp_path / "other"))
    for name in ("bundle.json", "schedule.json", "program.json"):
        edit(other / name, lambda document: document["contract"].update(model_digest="0" * 64))
    seal(other)
    refused(["bench", bundle_folder, other], "other was made for model_digest 000000000000", capsys)


def test_show_draws_the_schedule(schedule, tmp_path, capsys):
    file, picture = tmp_path / "schedule.json", tmp_path / "picture.svg"
    file.write_text(json.dumps(schedule))
    assert run(["show", str(file), "--out", str(picture)]) == 0
    assert picture.read_text().startswith("<?xml")
    assert "prediction" in capsys.readouterr().out


def test_show_json_holds_the_document(schedule, tmp_path, capsys):
    file = tmp_path / "schedule.json"
    file.write_text(json.dumps(schedule))
    assert run(["show", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["document"] == schedule


def test_export_refuses_a_schedule_for_another_model(schedule, tmp_path, capsys):
    file = tmp_path / "schedule.json"
    file.write_text(json.dumps(schedule))
    refused(["export", "digits-unet", "--schedule", file, "--out", tmp_path / "bundle"], "model", capsys)
    assert not (tmp_path / "bundle").exists()


MODEL_FILES = (
    "model_index.json",
    "unet/config.json",
    "scheduler/scheduler_config.json",
    "class_embedder/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "class_embedder/diffusion_pytorch_model.safetensors",
)


@pytest.fixture
def model_copy(tmp_path) -> Path:
    """A copy of digits-unet's folder that a test may damage."""
    return Path(shutil.copytree(MODEL, tmp_path / "model"))


def model_readers(model: Path, folder: Path) -> dict[str, list[object]]:
    """The commands that read a model."""
    schedule = folder / "schedule.json"
    schedule.write_text(FORMATS.read_text(encoding="utf-8").split("```json\n")[1].split("```")[0])
    return {
        "trace": ["trace", model, "--out", folder / "trace"],
        "search": ["search", model, "--out", folder / "new.json"],
        "export": ["export", model, "--schedule", schedule, "--out", folder / "bundle"],
    }


@pytest.mark.parametrize("command", ["trace", "search", "export"])
class TestModel:
    def test_missing(self, command, tmp_path, capsys):
        refused(model_readers(tmp_path / "nothing", tmp_path)[command], "no model", capsys)

    def test_an_empty_folder(self, command, tmp_path, capsys):
        (tmp_path / "empty").mkdir()
        refused(model_readers(tmp_path / "empty", tmp_path)[command], "neither model_index.json", capsys)

    @pytest.mark.parametrize("name", MODEL_FILES)
    def test_truncated(self, command, name, model_copy, tmp_path, capsys):
        truncate(model_copy / name)
        words = "cannot be loaded as" if name.endswith("safetensors") else f"{name} cannot be read"
        refused(model_readers(model_copy, tmp_path)[command], words, capsys)

    @pytest.mark.parametrize("name", [name for name in MODEL_FILES if name.endswith("json")])
    def test_no_object(self, command, name, model_copy, tmp_path, capsys):
        (model_copy / name).write_text("[]")
        refused(model_readers(model_copy, tmp_path)[command], f"{name} does not hold a JSON object", capsys)

    @pytest.mark.parametrize("component", ["unet", "class_embedder"])
    def test_weights_whose_header_lies(self, command, component, model_copy, tmp_path, capsys):
        weights = model_copy / component / "diffusion_pytorch_model.safetensors"
        weights.write_bytes((2**40).to_bytes(8, "little") + weights.read_bytes()[8:])
        refused(model_readers(model_copy, tmp_path)[command], f"{component} cannot be loaded as", capsys)

    @pytest.mark.parametrize(
        ("entry", "words"),
        [
            ({"_class_name": "AutoencoderKL"}, "supported are UNet2DConditionModel"),
            ({"sample_size": None}, "set sample_size"),
            ({"block_out_channels": [8, 8, 8]}, "cannot be loaded as UNet2DConditionModel"),
        ],
    )
    def test_a_config_that_does_not_fit(self, command, entry, words, model_copy, tmp_path, capsys):
        edit(model_copy / "unet" / "config.json", lambda config: config.update(entry))
        refused(model_readers(model_copy, tmp_path)[command], words, capsys)


class TestConditions:
    def searching(self, model: Path, folder: Path, content: bytes | None) -> list[object]:
        file = folder / "conditions.txt"
        if content is not None:
            file.write_bytes(content)
        return ["search", model, "--method", "best-random", "--conditions", file, "--out", folder / "new.json"]

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (None, "conditions.txt cannot be read"),
            (b"\xff\xfe\x00", "conditions.txt cannot be read"),
            (b"", "contains neither a class number nor a prompt"),
            (b" \n\n", "contains neither a class number nor a prompt"),
        ],
    )
    def test_a_file_of_nothing(self, content, words, tmp_path, capsys):
        refused(self.searching(MODEL, tmp_path, content), words, capsys)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"text_encoder": [None, None]}, "with one text_encoder"),
            ({"text_encoder_2": ["transformers", "CLIPTextModel"]}, "has text_encoder and text_encoder_2"),
            ({"tokenizer": [None, None]}, "has no entry tokenizer"),
            ({"text_encoder": ["mine", "Encoder"]}, "text_encoder is a class of mine instead of transformers"),
        ],
    )
    def test_a_pipeline_that_does_not_encode(self, change, words, text_model, tmp_path, capsys):
        edit(text_model / "model_index.json", lambda index: index.update(change))
        refused(self.searching(text_model, tmp_path, b"a cat"), words, capsys)

    @pytest.mark.parametrize("name", ["text_encoder/model.safetensors", "tokenizer/tokenizer.json"])
    def test_truncated(self, name, text_model, tmp_path, capsys):
        truncate(text_model / name)
        refused(self.searching(text_model, tmp_path, b"a cat"), f"{name.split('/')[0]} cannot be run as", capsys)

    def test_a_text_encoder_of_another_width(self, tmp_path, capsys):
        pytest.importorskip("transformers", reason="prompts are encoded by transformers")
        model = text_pipeline(tmp_path / "text", dim=12)
        capsys.readouterr()
        refused(self.searching(model, tmp_path, b"a cat"), "gives tokens of width 8", capsys)


@pytest.fixture
def text_model(tmp_path) -> Path:
    """A pipeline with a text encoder that a test may damage."""
    pytest.importorskip("transformers", reason="prompts are encoded by transformers")
    return text_pipeline(tmp_path / "text")


@pytest.mark.parametrize("name", ["bundle.json", "program.json", "blocks.json"])
class TestShow:
    def test_missing(self, name, tmp_path, capsys):
        refused(["show", tmp_path / name], "does not exist", capsys)

    def test_truncated(self, name, bundle_copy, capsys):
        truncate(bundle_copy / name)
        refused(["show", bundle_copy / name], "is not valid JSON", capsys)

    def test_newer_version(self, name, bundle_copy, capsys):
        edit(bundle_copy / name, lambda document: document.update(format_version="2.0"))
        refused(["show", bundle_copy / name], "format version 2.0", capsys)

    def test_not_text(self, name, bundle_copy, capsys):
        (bundle_copy / name).write_bytes(b"\xff\xfe")
        refused(["show", bundle_copy / name], "is not text, expected a JSON file", capsys)


def test_a_file_that_names_what_it_does_not_hold(bundle_copy, capsys):
    edit(bundle_copy / "blocks.json", lambda document: document["pieces"][0]["reads"].append("ghost"))
    refused(["show", bundle_copy / "blocks.json"], "piece 0 reads 'ghost'", capsys)
    edit(bundle_copy / "program.json", lambda document: document["slots"][0].update(dtype="float7"))
    refused(["show", bundle_copy / "program.json"], "no usable shape or dtype", capsys)
    edit(bundle_copy / "program.json", lambda document: document["slots"][0].update(dtype="float32"))
    edit(bundle_copy / "program.json", lambda document: document["graphs"].clear())
    refused(["show", bundle_copy / "program.json"], "which the file does not describe", capsys)
