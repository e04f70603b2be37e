"""Pruners on disk: whole or refused, in one line that says what to do."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.files import FORMAT_VERSION
from dipgo_deploy.search.dipgo import pruner_file
from dipgo_deploy.search.dipgo.pruner_file import load_training, read_record, read_scores, save_training
from tests.search.gradient import contract_for, training_of
from tests.search.graphs import chain_like, contract_of
from tests.search.tables import table_for


class Nothing:
    """A model that is never run."""

    dtype = "float32"


def blank(graph=None, contract=None, kind="output", **fields):
    graph = graph or chain_like()
    return training_of(Nothing(), graph, kind, contract or contract_of(graph, 6), **fields)


@pytest.fixture
def path(tmp_path):
    training = blank()
    with torch.no_grad():
        training.pruner.second_bias.normal_(generator=torch.Generator().manual_seed(0))
    training.done, training.seconds = 2, 7.5
    save_training(tmp_path / "found.pruner", training)
    return tmp_path / "found.pruner"


def refuse(path, message: str, training=None) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_training(path, training or blank())
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def rewrite(path, **header: str) -> None:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        path.write_bytes(save(tensors, metadata={**file.metadata(), **header}))


def test_what_is_written_is_read_again(path) -> None:
    found, record = blank(polish=99, images=3, checkpoint="block", order="greedy", pruner=path), read_record(path)
    load_training(path, found)
    assert (
        (found.done, found.seconds, found.search_cost)
        == (record.done, record.seconds, record.search_cost)
        == (2, 7.5, 0.0)
    )
    assert record.options == blank().options and record.blocks == chain_like().block_names
    first = found.scores()
    save_training(path, found)
    again = blank(polish=99)
    load_training(path, again)
    assert np.array_equal(first, again.scores()) and not (first == first[0, 0]).all()


def test_a_missing_file(tmp_path) -> None:
    refuse(tmp_path / "none.pruner", "is not a file: name a pruner that method dipgo wrote")
    refuse(tmp_path, "is not a file")


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100, 1000, -1000, -1])
def test_a_truncated_file(path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])
    refuse(path, r"is damaged \(.*\): train the pruner again")


def test_garbage(path) -> None:
    for content in (b"\xff" * 200, b"\x10" + bytes(7) + b"\xc3\x28" * 8, b"{}" * 50):
        path.write_bytes(content)
        refuse(path, r"is damaged \(.*\): train the pruner again")


def test_a_flipped_byte_anywhere_is_noticed(path) -> None:
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    header = int.from_bytes(whole[:8], "little") + 8
    text = whole[:header].rstrip()
    for place in [*range(9), *rng.integers(8, len(text), 60), *rng.integers(header, len(whole), 20)]:
        content = bytearray(whole)
        content[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        refuse(path, ".")


def test_a_file_of_another_kind(path) -> None:
    path.write_bytes(save({"a": torch.zeros(2)}))
    refuse(path, "is not a pruner's file: name a file that method dipgo wrote")
    path.write_bytes(save({"a": torch.zeros(2)}, metadata={"format": "pt"}))
    refuse(path, "is not a pruner's file")


def test_a_newer_format(path) -> None:
    rewrite(path, format_version="2.0")
    refuse(path, f"has format version 2.0, this program reads {FORMAT_VERSION}: update it")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.pop("blocks"), "blocks: Field required: train the pruner again"),
        (lambda record: record.update(extra=1), "extra: Unexpected keyword argument: train the pruner again"),
        (lambda record: record["options"].update(batch="many"), "options.batch: Input should be a valid integer"),
        (lambda record: record["options"].update(batch=0), r"invalid options \(batch must be at least 1, got 0"),
        (lambda record: record["options"].update(knob=1), "options.knob: Unexpected keyword argument"),
        (lambda record: record["options"].update(pruner="p"), "options of one search stand in the record"),
        (lambda record: record.update(done=3), r"is damaged \(it differs from its own sha256\)"),
    ],
)
def test_a_changed_record(path, change, message) -> None:
    with safe_open(path, "pt") as file:
        record = json.loads(file.metadata()["record"])
    change(record)
    rewrite(path, record=json.dumps(record))
    refuse(path, message)


def older(path) -> dict:
    """Make the file one of version 0.1, which kept everything that a search was asked for among its options."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        record = json.loads(file.metadata()["record"])
    names = {"latency": "cost_table", "images": "polish_images"}
    for name in ("seed", "classes", "prompts", "guidance_scale", "latency", "images"):
        record["options"][names.get(name, name)] = record.pop(name)
    record["options"]["unit"] = "macs"
    record["spent"] = record.pop("search_cost")
    reseal(path, record, tensors)
    return record


def reseal(path, record, tensors) -> None:
    text = json.dumps(record)
    path.write_bytes(save(tensors, metadata=pruner_file._header(text, tensors)))


def test_a_file_of_an_older_version_is_read(path) -> None:
    record = read_record(path)
    older(path)
    assert read_record(path) == record
    load_training(path, found := blank())
    assert found.done == 2 and np.array_equal(read_scores(path), found.scores())


def test_an_older_file_with_prompts_is_read(path) -> None:
    record = older(path)
    record["options"] |= {"prompts": ["a cat", "a dog"], "classes": [0, 1]}
    with safe_open(path, "pt") as file:
        reseal(path, record, {name: file.get_tensor(name) for name in file.keys()})
    load_training(path, blank(prompts=("a cat", "a dog")))
    assert (read_record(path).prompts, read_record(path).classes) == (("a cat", "a dog"), ())


def test_an_older_file_trained_on_milliseconds_is_refused(path) -> None:
    record = older(path)
    record["options"]["unit"] = "ms"
    rewrite(path, record=json.dumps(record))
    refuse(path, "was trained on milliseconds of blocks: train the pruner again with a latency table")


def test_scores_are_read_from_the_file_alone(path) -> None:
    load_training(path, training := blank())
    assert np.array_equal(read_scores(path), training.scores())
    with safe_open(path, "pt") as file:
        record = json.loads(file.metadata()["record"])
    rewrite(path, record=json.dumps({**record, "done": 3}))
    with pytest.raises(InputError, match="differs from its own sha256"):
        read_scores(path)


def test_another_model_sampler_or_guidance(path) -> None:
    graph = chain_like()
    plain = contract_of(graph, 6)
    for contract, message in (
        (replace(plain, model_digest="e" * 64), "was made for model_digest dddddddddddd, expected eeeeeeeeeeee"),
        (contract_of(graph, 7), "was made for sampler DDIMScheduler with 6 calls .*, expected DDIMScheduler with 7"),
        (replace(plain, guidance="concat"), "was made for guidance none, expected concat: make it again"),
    ):
        traced = replace(graph, model_digest=contract.model_digest)
        refuse(path, message, blank(traced, contract))


def test_another_granularity_kind_or_block_set(path) -> None:
    graph = chain_like()
    refuse(path, "was trained for granularity stage, not for branch", blank(replace(graph, granularity="branch")))
    refuse(path, "was trained for kind output, not for residual: name another file", blank(kind="residual"))
    other = replace(graph, blocks=(*graph.blocks[1:-1], graph.blocks[0], graph.blocks[-1]))
    refuse(path, "was trained for blocks", blank(other))


def test_other_options(path) -> None:
    refuse(path, r"with another learning_rate \(0.1, not 0.5\): give the same options", blank(learning_rate=0.5))
    refuse(path, r"with another width \(32, not 16\)", blank(width=16))
    refuse(path, r"with another seed \(0, not 3\)", blank(seed=3))
    refuse(path, r"with another classes \(\(\), not \(1, 2\)\)", blank(classes=(1, 2)))
    refuse(path, r"with another guidance_scale \(None, not 2.0\)", blank(guidance_scale=2.0))
    graph = chain_like()
    refuse(path, "with another latency ", blank(graph, latency=table_for(graph)))


def test_scores_that_are_no_numbers(path) -> None:
    training = blank()
    training.pruner.second_bias.data[3] = float("nan")
    save_training(path, training)
    refuse(path, "holds scores that are not finite: train the pruner again")


def test_tensors_of_a_type_that_numpy_lacks(path) -> None:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).bfloat16() for name in file.keys()}
        path.write_bytes(save(tensors, metadata=file.metadata()))
    refuse(path, "is damaged .it differs from its own sha256.")


def test_a_write_that_fails_leaves_the_old_file(path, monkeypatch) -> None:
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match="cannot be written .No space left on device."):
        save_training(path, blank())
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_the_pruner_that_ships_fits_its_model(digits_unet, traced) -> None:
    path = pruner_file.shipped_pruner("digits-unet")
    record, graph = read_record(path), traced("digits-unet", "stage").blocks
    training = training_of(digits_unet, graph, contract=contract_for(digits_unet, steps=50), **vars(record.options))
    load_training(path, training)
    assert training.done == record.done and training.scores().shape == (50, 8)
    with pytest.raises(InputError, match="no pruner ships for other: train one with method dipgo"):
        pruner_file.shipped_pruner("other")
