"""A sampler that does not fold is said, with options that do make it fold."""

from __future__ import annotations

import re

import pytest

from dipgo_deploy.core.sampler import LinearSampler
from dipgo_deploy.core.sampler_options import parse_sampler_options
from dipgo_deploy.models.sampler_coefficients import read_sampler
from dipgo_deploy.models.sampler_note import sampler_note
from dipgo_deploy.models.samplers import sampler_spec


@pytest.mark.parametrize(
    ("class_name", "options", "reason", "remedy"),
    [
        ("DDIMScheduler", {}, "clips its sample", ["clip_sample=false"]),
        ("DDIMScheduler", {"thresholding": True}, "thresholds", ["clip_sample=false", "thresholding=false"]),
        ("PNDMScheduler", {}, "not linear", ["skip_prk_steps=true"]),
        ("TCDScheduler", {}, "draws noise", ["eta=0.0"]),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "draws noise", ["algorithm_type="]),
        ("LCMScheduler", {}, "draws noise", []),
        ("DDPMScheduler", {}, "draws noise", []),
    ],
)
def test_the_note_gives_the_reason_and_a_remedy_that_works(class_name, options, reason, remedy):
    config = {"_class_name": class_name, **options}
    note = sampler_note(sampler_spec(None, 6, config))
    assert note.startswith(f"note: {class_name} ") and reason in note
    found = re.findall(r"--sampler-option (\S+)", note)
    assert len(found) == len(remedy) and all(map(str.startswith, found, remedy))
    changed = sampler_spec(None, 6, config, parse_sampler_options(found))
    assert isinstance(read_sampler(changed), LinearSampler) == bool(found)


def test_a_linear_sampler_needs_no_note():
    assert sampler_note(sampler_spec(None, 6, {"_class_name": "EulerDiscreteScheduler"})) == ""
