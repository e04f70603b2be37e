"""Latency tables: as files, and refused where they belong to something else."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.files import load_latency_table, save_latency_table
from dipgo_deploy.core.latency import check_table
from tests.search.graphs import unet_like
from tests.search.tables import table_for


def test_a_table_is_read_as_it_was_written(tmp_path):
    table = table_for(unet_like())
    save_latency_table(tmp_path / "latency.json", table)
    assert load_latency_table(tmp_path / "latency.json") == table


@pytest.mark.parametrize("change", [{"call_ms": -1.0}, {"forward_ms": 0.0}, {"pieces_ms": [-0.1]}, {"batch": 0}])
def test_absurd_numbers_are_refused(tmp_path, change):
    file = tmp_path / "latency.json"
    save_latency_table(file, table_for(unet_like()))
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(InputError, match="profile the model again"):
        load_latency_table(file)


def test_fetched_weights_are_part_of_a_piece_s_price():
    graph = unet_like()
    table = table_for(graph)
    mib = graph.weight_bytes_of([graph.pieces[2]]) / 2**20
    assert table.prices_ms(graph)[2] == pytest.approx(table.pieces_ms[2] + table.cold_ms_per_mib * mib)


def test_a_table_of_half_precision_prices_the_float32_model_that_was_converted():
    graph = unet_like()
    half = replace(graph, dtype="float16", weights={name: size // 2 for name, size in graph.weights.items()})
    table = replace(table_for(half), dtype="float16", cold_ms_per_mib=100.0)
    assert graph.dtype == "float32" and table.prices_ms(graph) == pytest.approx(table.prices_ms(half))
    assert sum(table.prices_ms(graph)) > sum(table.pieces_ms)


def test_a_table_of_another_model_is_refused():
    graph = unet_like()
    with pytest.raises(InputError, match="measured for model_digest eeeeeeeeeeee, expected dddddddddddd: profile this"):
        check_table(replace(table_for(graph), model_digest="e" * 64), graph)
    with pytest.raises(InputError, match="has 2 pieces"):
        check_table(replace(table_for(graph), pieces_ms=(1.0, 2.0)), graph)
    with pytest.raises(UsageError, match="measured with batch 8, requested is batch 4: profile with batch 4"):
        check_table(table_for(graph), graph, batch=4)
    latent = tuple(graph.inputs[0].shape[1:])
    check_table(replace(table_for(graph), latent_shape=latent), graph)
    with pytest.raises(
        InputError, match=r"measured for latents of shape \(4, 96, 96\), expected .*: profile this size"
    ):
        check_table(replace(table_for(graph), latent_shape=(4, 96, 96)), graph)


def test_the_digest_follows_the_costs_alone():
    table = table_for(unet_like())
    assert replace(table, environment={"cores": 3}).digest == table.digest != replace(table, call_ms=9.0).digest
