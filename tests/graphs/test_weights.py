"""The weights file: its content, and refusals of damaged files."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.graphs.weights import read_layout, save_weights

STATE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1.5, -2.0], dtype=torch.float16)}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "w.safetensors"
    tied = STATE["a"]
    save_weights(path, {**STATE, "tied": tied, "turned": STATE["a"].T}, {"table": np.arange(4, dtype=np.int64)})
    return path


def with_header(path, header: dict | bytes, data: bytes = b"\0" * 24):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_offsets_lead_to_the_tensors(saved):
    layout, content = read_layout(saved), saved.read_bytes()
    offset, length = layout["a"]
    assert np.array_equal(np.frombuffer(content[offset : offset + length], np.float32), np.arange(6))
    offset, length = layout["b"]
    assert np.array_equal(np.frombuffer(content[offset : offset + length], np.float16), [1.5, -2.0])
    assert sorted(layout) == ["a", "b", "table", "tied", "turned"]
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_tied_and_transposed_tensors_are_written_whole(saved):
    found = load_file(saved)
    assert torch.equal(found["tied"], STATE["a"]) and torch.equal(found["turned"], STATE["a"].T)


@pytest.mark.parametrize("length", [0, 7, 8, 30])
def test_truncated_files_are_refused(saved, length):
    saved.write_bytes(saved.read_bytes()[:length])
    with pytest.raises(InputError, match="restore it"):
        read_layout(saved)


def test_a_missing_tail_is_refused(saved):
    saved.write_bytes(saved.read_bytes()[:-1])
    with pytest.raises(InputError, match="tensor .* lies outside the file: restore it"):
        read_layout(saved)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="restore it"):
        read_layout(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    "header",
    [b"{", b"[1]", b'"text"', b"\xff\xfe", b"{" * 20_000]
    + [{"a": entry} for entry in ({}, [], 3, {"data_offsets": 3}, {"data_offsets": [0]}, {"data_offsets": [0, 1, 2]})]
    + [{"a": {"data_offsets": pair}} for pair in (["0", "4"], [0.0, 4.5], [None, 4], [True, [4]])],
)
def test_headers_that_make_no_sense_are_refused(tmp_path, header):
    path = tmp_path / "w.safetensors"
    with_header(path, header)
    with pytest.raises(InputError, match="has no readable safetensors header: restore it"):
        read_layout(path)


@pytest.mark.parametrize("pair", [(-4, 4), (0, 25), (8, 4), (1 << 60, (1 << 60) + 4)])
def test_tensors_outside_the_file_are_refused(tmp_path, pair):
    path = tmp_path / "w.safetensors"
    with_header(path, {"__metadata__": {}, "a": {"dtype": "F32", "shape": [1], "data_offsets": pair}})
    with pytest.raises(InputError, match="tensor a lies outside the file"):
        read_layout(path)


def test_a_header_longer_than_the_file_is_never_read(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    with pytest.raises(InputError, match="is not a safetensors file"):
        read_layout(path)
