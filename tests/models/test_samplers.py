from __future__ import annotations

import dataclasses
import json

import diffusers
import numpy as np
import pytest
import torch

from dipgo_deploy.core.errors import InputError, MissingError, UsageError
from dipgo_deploy.models.samplers import SAMPLERS, sampler_spec
from dipgo_deploy.models.schedulers import is_recorded_as, scheduler_from_spec, step_arguments

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers.*")

MODEL = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.42.1",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "an_option_of_nobody": 7,
}


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "flow-euler"])
def test_every_name_builds_its_scheduler_with_the_models_betas(name):
    spec = sampler_spec(name, 10, MODEL)
    scheduler = scheduler_from_spec(spec)
    assert type(scheduler).__name__ == SAMPLERS[name].class_name == spec.class_name
    assert scheduler.betas[-1].item() == pytest.approx(0.012)
    assert tuple(scheduler.timesteps.tolist()) == spec.timesteps
    assert all(scheduler.config[key] == value for key, value in SAMPLERS[name].config.items())


@pytest.mark.parametrize(("name", "calls"), [("ddim", 50), ("pndm", 51), ("heun", 99), ("unipc", 50)])
def test_one_timestep_is_recorded_per_network_call(name, calls):
    assert sampler_spec(name, 50, MODEL).calls == calls


def test_pndm_repeats_its_second_timestep():
    assert sampler_spec("pndm", 4, MODEL).timesteps == (751.0, 501.0, 501.0, 251.0, 1.0)


def test_config_is_canonical_json_with_every_option_and_no_other():
    spec = sampler_spec("ddim", 10, MODEL)
    assert spec.config == json.dumps(spec.config_dict, sort_keys=True)
    assert {"eta", "an_option_of_nobody", "skip_prk_steps"}.isdisjoint(spec.config_dict)
    assert not any(key.startswith("_") for key in spec.config_dict)
    assert spec.config_dict["timestep_spacing"] == "leading"  # a default of the class
    reordered = sampler_spec("ddim", 10, dict(reversed(MODEL.items())))
    assert spec == reordered and spec.digest == reordered.digest


def test_unknown_config_keys_are_dropped_silently(caplog, capfd):
    sampler_spec("ddim", 10, MODEL)
    assert not caplog.records and capfd.readouterr().err == ""


def test_an_infinite_default_is_left_out_and_restored():
    spec = sampler_spec("dpmpp-2m", 10, MODEL)
    assert "lambda_min_clipped" not in spec.config_dict
    assert scheduler_from_spec(spec).config.lambda_min_clipped == -float("inf")


def test_arrays_become_lists_and_betas_survive():
    betas = np.linspace(0.001, 0.02, 100, dtype=np.float32)
    spec = sampler_spec("ddim", 10, {"num_train_timesteps": 100, "trained_betas": betas})
    assert spec.config_dict["trained_betas"] == betas.tolist()
    np.testing.assert_array_equal(scheduler_from_spec(spec).betas.numpy(), betas)


def test_scheduler_object_gives_class_and_config():
    scheduler = diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing")
    spec = sampler_spec(scheduler, 10)
    assert (spec.class_name, spec.timesteps[0]) == ("DDIMScheduler", 999.0)
    assert spec.config_dict["beta_schedule"] == "squaredcos_cap_v2"
    assert sampler_spec(scheduler, 10, overrides={"clip_sample": False}).config_dict["clip_sample"] is False


def test_overrides_win_over_model_and_preset():
    assert sampler_spec("pndm", 10, MODEL, {"skip_prk_steps": False}).calls == 19
    assert sampler_spec("ddim", 10, MODEL, {"timestep_spacing": "trailing"}).timesteps[0] == 999.0


def test_defaults_of_the_models_scheduler_yield_to_those_of_the_class():
    model = diffusers.PNDMScheduler().config  # its spacing "leading" is a default, so no choice of the model
    assert sampler_spec("dpmpp-2m", 10, model).config_dict["timestep_spacing"] == "linspace"


def test_unknown_name_lists_the_known():
    with pytest.raises(UsageError, match=r"no sampler 'dim': choose one of ddim, .*unipc"):
        sampler_spec("dim", 10, MODEL)


@pytest.mark.parametrize("steps", [-1, 0, 1001])
def test_absurd_steps_are_refused(steps):
    with pytest.raises(UsageError, match=f"sampler steps must lie between 1 and 1000, got {steps}"):
        sampler_spec("ddim", steps, MODEL)


def test_options_that_the_scheduler_lacks_or_refuses():
    with pytest.raises(UsageError, match="DDIMScheduler has no option 'use_karras': choose from beta_end"):
        sampler_spec("ddim", 10, MODEL, {"use_karras": True})
    with pytest.raises(UsageError, match="EulerDiscreteScheduler refuses this config"):
        sampler_spec("euler", 10, MODEL, {"use_karras_sigmas": True, "use_beta_sigmas": True})
    with pytest.raises(UsageError, match=r"cannot make 10 steps .*sideways"):
        sampler_spec("ddim", 10, MODEL, {"timestep_spacing": "sideways"})
    with pytest.raises(UsageError, match="option 'clip_sample_range' holds nan"):
        sampler_spec("ddim", 10, MODEL, {"clip_sample_range": float("nan")})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clip_sample": "no"}, "'clip_sample' of DDIMScheduler is true or false, got 'no'"),
        ({"steps_offset": "one"}, "'steps_offset' of DDIMScheduler is a number, got 'one'"),
        ({"steps_offset": True}, "'steps_offset' of DDIMScheduler is a number, got True"),
        ({"prediction_type": 1}, "'prediction_type' of DDIMScheduler is a word, got 1"),
        ({"mu": 1.0}, "DDIMScheduler takes no 'mu'"),
    ],
)
def test_options_of_another_type_are_refused(options, words):
    with pytest.raises(UsageError, match=words):
        sampler_spec("ddim", 10, MODEL, options)


def test_the_models_own_scheduler_keeps_class_and_options():
    own = {"_class_name": "UniPCMultistepScheduler", "solver_order": 3, "solver_type": "bh1", "unknown": 1}
    spec = sampler_spec(None, 10, {**own, "_use_default_values": ["solver_order"]})
    assert spec.class_name == own["_class_name"]
    assert (spec.config_dict["solver_order"], spec.config_dict["solver_type"]) == (3, "bh1")
    assert sampler_spec(None, 10, own, {"solver_order": 1}).config_dict["solver_order"] == 1
    with pytest.raises(InputError, match="no scheduler of its own: choose a sampler of ddim"):
        sampler_spec(None, 10, {"beta_end": 0.01})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("CogVideoXDPMScheduler", "every step of CogVideoXDPMScheduler needs 'old_pred_original_sample'"),
        ("RePaintScheduler", "every step of RePaintScheduler needs 'original_image'"),
        ("ScoreSdeVeScheduler", "has no step"),
        ("NoSuchScheduler", "is not a diffusers scheduler"),
    ],
)
def test_a_scheduler_that_no_program_can_step_is_refused(name, words):
    with pytest.raises(InputError, match=words):
        sampler_spec(None, 10, {"_class_name": name})


def test_eta_is_an_argument_of_step_unless_the_class_has_an_option_of_that_name():
    spec = sampler_spec(None, 6, {"_class_name": "TCDScheduler"}, None, {"eta": 0.0})
    assert spec.config_dict["eta"] == 0.0 and step_arguments(spec) == {"eta": 0.0}
    assert is_recorded_as(diffusers.TCDScheduler(), spec)
    own = sampler_spec(None, 6, {"_class_name": "LTXEulerAncestralRFScheduler", "eta": 0.5})
    assert own.config_dict["eta"] == 0.5 and step_arguments(own) == {}
    assert not is_recorded_as(diffusers.LTXEulerAncestralRFScheduler(), own)


def test_a_scheduler_that_changes_its_own_config_is_recognized_before_and_after():
    own = {"_class_name": "DPMSolverSinglestepScheduler", "solver_order": 3}
    spec, scheduler = sampler_spec(None, 7, own), diffusers.DPMSolverSinglestepScheduler(solver_order=3)
    before = scheduler.config.lower_order_final
    assert is_recorded_as(scheduler, spec) and spec.config_dict["lower_order_final"] == before
    scheduler.set_timesteps(7)
    assert scheduler.config.lower_order_final != before and is_recorded_as(scheduler, spec)


def test_timesteps_that_are_not_finite_are_refused():
    own = {"_class_name": "KDPM2AncestralDiscreteScheduler", "beta_schedule": "squaredcos_cap_v2"}
    with pytest.raises(
        UsageError, match="6 steps of KDPM2AncestralDiscreteScheduler give timesteps that are not finite"
    ):
        sampler_spec(None, 6, own)


def test_a_models_own_config_that_its_scheduler_refuses_is_bad_input():
    with pytest.raises(InputError, match="refuses this config .*: fix the model's scheduler_config.json"):
        sampler_spec("ddim", 10, {"beta_schedule": "no such schedule"})


def test_dynamic_shifting_needs_mu():
    shifting = {"use_dynamic_shifting": True}
    with pytest.raises(InputError, match="'mu' is missing: give 'mu'"):
        sampler_spec("flow-euler", 10, shifting)
    spec = sampler_spec("flow-euler", 10, shifting, {"mu": 1.15})
    reference = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    reference.set_timesteps(10, mu=1.15)
    assert spec.config_dict["mu"] == 1.15
    assert spec.timesteps == tuple(reference.timesteps.tolist()) != sampler_spec("flow-euler", 10).timesteps
    assert tuple(scheduler_from_spec(spec).timesteps.tolist()) == spec.timesteps


def test_custom_sigmas():
    spec = sampler_spec("flow-euler", 4, None, {"sigmas": np.linspace(1.0, 0.25, 4)})
    assert spec.timesteps == (1000.0, 750.0, 500.0, 250.0)
    assert tuple(scheduler_from_spec(spec).timesteps.tolist()) == spec.timesteps
    with pytest.raises(UsageError, match="'sigmas' give 4 steps instead of 5: give 5 sigmas"):
        sampler_spec("flow-euler", 5, None, {"sigmas": [1.0, 0.75, 0.5, 0.25]})


def test_sampler_of_the_wrong_family_is_refused():
    with pytest.raises(UsageError, match="FlowMatchEulerDiscreteScheduler is configured for flow-matching models"):
        sampler_spec("flow-euler", 10, MODEL)
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    with pytest.raises(UsageError, match="choose another sampler"):
        sampler_spec("unipc", 10, flow)
    options = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    assert sampler_spec("unipc", 10, flow, options).config_dict["use_flow_sigmas"]


def test_spec_of_another_diffusers_is_refused():
    spec = sampler_spec("ddim", 4, MODEL)
    moved = dataclasses.replace(spec, timesteps=(*spec.timesteps[:-1], 2.0))
    with pytest.raises(
        InputError, match=r"recorded with 4 timesteps 751 to 2, but its config now gives .* 751 to 1: install"
    ):
        scheduler_from_spec(moved)
    unknown = dataclasses.replace(spec, config=json.dumps({**spec.config_dict, "new_option": 1}))
    with pytest.raises(InputError, match="has no option 'new_option': install"):
        scheduler_from_spec(unknown)
    broken = dataclasses.replace(spec, config=json.dumps({**spec.config_dict, "beta_schedule": "none"}))
    with pytest.raises(InputError, match="DDIMScheduler refuses its config"):
        scheduler_from_spec(broken)


@pytest.mark.parametrize("name", ["UNet2DModel", "pipelines", "os", "NoSuchScheduler", "__name__"])
def test_only_scheduler_classes_are_built(name):
    spec = dataclasses.replace(sampler_spec("ddim", 4, MODEL), class_name=name)
    with pytest.raises(InputError, match=f"'{name}' is not a diffusers scheduler"):
        scheduler_from_spec(spec)


def test_missing_package_is_named(monkeypatch):
    class LMSDiscreteScheduler:  # what diffusers puts there without scipy
        _backends = ("torch", "scipy")

    monkeypatch.setattr(diffusers, "LMSDiscreteScheduler", LMSDiscreteScheduler)
    with pytest.raises(MissingError, match="needs the packages torch, scipy"):
        sampler_spec("lms", 4, MODEL)


def test_repeated_first_timestep_does_not_skip_a_step():
    spec = sampler_spec("dpmpp-2m", 100, MODEL, {"use_beta_sigmas": True})
    assert spec.timesteps[0] == spec.timesteps[1]
    scheduler, one = scheduler_from_spec(spec), torch.ones(1, 1, 1, 1)
    scheduler.step(one, scheduler.timesteps[0], one)
    assert scheduler.step_index == 1


def test_steps_that_fall_on_one_timestep_are_refused():
    with pytest.raises(UsageError, match="1000 steps of UniPCMultistepScheduler all have one timestep"):
        sampler_spec("unipc", 1000, {**MODEL, "timestep_spacing": "leading"})
    assert sampler_spec("unipc", 1, MODEL).calls == 1
