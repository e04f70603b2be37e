"""Bytes of engines that nobody has built: weights as an engine holds them, and code."""

from __future__ import annotations

from pathlib import Path

import pytest

from dipgo_deploy.graphs.folding import folded_values
from dipgo_deploy.runtime.foretold import foretell
from dipgo_deploy.runtime.loaded import LoadedBundle
from dipgo_deploy.trt.sizes import size_fit
from tests.models.families import tiny
from tests.runtime.bundles import few_graphs


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> LoadedBundle:
    """SD3 adds a part of a larger table of positions."""
    folder: Path = tmp_path_factory.mktemp("foretold") / "bundle"
    return few_graphs(tiny("sd3"), folder, shares=(1, 0))


@pytest.mark.parametrize(("precision", "value_bytes"), [(None, 4), ("float16", 2)])
def test_an_engine_holds_what_the_builder_makes_of_its_weights(precision, value_bytes, bundle):
    foretold, fit = foretell(bundle, "subnets", precision), size_fit("rtx", precision or "float32")
    whole, code = foretold.engine_bytes(fit), foretold.engine_bytes(fit, has_weights=False)
    folded = {name: folded_values(content, foretold.specs) for name, content in foretold.graphs.items()}
    assert any(folded.values()) and min(code.values()) > 0
    for graph in foretold.program.graphs:
        assert whole[graph.name] - code[graph.name] == graph.weight_bytes - value_bytes * folded[graph.name]


def test_where_nothing_was_measured_an_engine_weighs_its_weights(bundle):
    foretold = foretell(bundle, "subnets", "float16")
    assert foretold.engine_bytes(None) == {graph.name: graph.weight_bytes for graph in foretold.program.graphs}
