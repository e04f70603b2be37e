"""The names that options take are those of the library, which is not imported to ask for help."""

from __future__ import annotations

from typing import get_args

from dipgo_deploy.cli.options import FormatName, PresetName, SamplerName
from dipgo_deploy.models.samplers import SAMPLERS
from dipgo_deploy.search.dipgo.options import PRESETS
from dipgo_deploy.search.interchange import FORMATS


def test_every_name_can_be_given():
    assert get_args(FormatName) == (*FORMATS,)
    assert get_args(PresetName) == (*PRESETS,)
    assert get_args(SamplerName) == (*SAMPLERS,)
