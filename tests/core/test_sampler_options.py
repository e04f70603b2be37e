from __future__ import annotations

import pytest

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.sampler_options import parse_sampler_options


def test_values_are_json_python_words_or_strings():
    texts = ["clip_sample=false", "thresholding=True", "steps_offset = 1", "mu=1.15", "prediction_type=v_prediction"]
    expected = {
        "clip_sample": False, "thresholding": True, "steps_offset": 1, "mu": 1.15, "prediction_type": "v_prediction",
        "sigmas": [1.0, 0.5], "variance_type": None,
    }  # fmt: skip
    assert parse_sampler_options([*texts, "sigmas=[1.0, 0.5]", "variance_type=None"]) == expected


@pytest.mark.parametrize("text", ["", "clip_sample", "=false", "clip_sample="])
def test_what_is_no_option_is_refused(text):
    with pytest.raises(UsageError, match="is not an option of a sampler: give KEY=VALUE"):
        parse_sampler_options([text])


def test_an_option_is_given_once():
    with pytest.raises(UsageError, match="option 'a' is given twice"):
        parse_sampler_options(["a=1", "a=2"])
