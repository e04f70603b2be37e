"""Weights files that are links or have several hard links are read all the same."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from dipgo_deploy.graphs.half_probe import HalfProbe
from dipgo_deploy.graphs.links import read_tensor, resolve_weights


@pytest.mark.parametrize("kind", ["symlink", "hard link"])
def test_weights_are_read_wherever_their_links_lead(kind, traced, tmp_path: Path) -> None:
    own = traced("digits-unet", "stage")
    wanted = HalfProbe(own.master, own.blocks, "float16").weights_beyond(0.5)
    shutil.copyfile(own.master, tmp_path / own.master.name)
    link = tmp_path / own.weights.name
    os.symlink(own.weights, link) if kind == "symlink" else os.link(own.weights, link)
    assert HalfProbe(tmp_path / own.master.name, own.blocks, "float16").weights_beyond(0.5) == wanted != {}
    if kind == "hard link":
        link.unlink()  # The trace of the session keeps one link.


def test_a_graph_names_the_real_file_of_its_weights(traced, tmp_path: Path) -> None:
    own = traced("digits-unet", "stage")
    content = own.master.read_bytes()
    assert resolve_weights(content, own.folder) == (content, own.folder.resolve())
    blob = tmp_path / "blobs" / ("0" * 64)
    blob.parent.mkdir()
    shutil.copyfile(own.weights, blob)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / own.weights.name).symlink_to("../blobs/" + blob.name)
    (tmp_path / "link").symlink_to("unet")
    graph, folder = resolve_weights(content, tmp_path / "link")
    model = onnx.load_model_from_string(graph)
    locations = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
    assert (folder, locations) == (blob.parent.resolve(), {blob.name})


def test_inline_tensors_are_read_as_they_are() -> None:
    np.testing.assert_array_equal(read_tensor(ir.tensor(np.arange(3))), np.arange(3))
