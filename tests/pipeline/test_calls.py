"""Calls of every family are read as flat named inputs. Arguments without an input are refused by name."""

from __future__ import annotations

import pytest
import torch

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.tensors import TensorSpec
from dipgo_deploy.models import model_from_pipeline
from dipgo_deploy.models.presets.mmdit import positions
from dipgo_deploy.pipeline.calls import CallReader, RefusedCall
from tests.models.conditioned import CONDITIONED, build
from tests.models.families import FAMILIES, tiny


def specs(inputs):
    """Inputs of graphs as a trace describes them."""
    return [TensorSpec(name, ("rows", *tensor.shape[1:]), "float32") for name, tensor in inputs.items()]


UNET = specs(
    {"sample": torch.zeros(2, 4, 8, 8), "timestep": torch.zeros(2), "encoder_hidden_states": torch.zeros(2, 7, 12)}
)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_inputs_of_every_preset_are_read_back(name, monkeypatch):
    model = tiny(name)
    inputs = model.example_inputs(2)
    reader = CallReader(model.class_name, model.latent_shape, specs(inputs))
    own, seen = model.module.forward, {}

    def forward(*args, **kwargs):
        seen["call"], output = reader.read(args, kwargs), own(*args, **kwargs)
        seen["output"] = output[0]
        return output

    monkeypatch.setattr(model.module, "forward", forward)
    prediction = model.forward(**inputs)
    call, (latent, *_) = seen["call"], inputs
    assert torch.equal(call.latent, inputs[latent]) and not call.return_dict
    assert call.timestep == pytest.approx(500, abs=call.tolerance)
    assert call.conditioning.keys() == inputs.keys() - {latent, "timestep"}
    assert all(torch.equal(tensor, inputs[name]) for name, tensor in call.conditioning.items())
    assert torch.equal(call.as_returned(prediction), seen["output"])


@pytest.mark.parametrize("name", CONDITIONED)
def test_the_calls_of_a_pipeline_are_split_into_latent_and_conditioning(name, tmp_path, monkeypatch):
    """The preset's forward on the parts that are read gives what the module gives on the whole call, bit for bit."""
    pipeline, arguments = build(name, tmp_path), CONDITIONED[name].arguments()
    model = model_from_pipeline(pipeline, **arguments)
    reader = CallReader(model.class_name, model.latent_shape, specs(model.example_inputs(1)))
    own, count = model.module.forward, []

    def forward(*args, **kwargs):
        output = own(*args, **kwargs)
        call, whole = reader.read(args, kwargs), output[0]
        assert call.conditioning.keys() == CONDITIONED[name].inputs.keys()
        with monkeypatch.context() as patch:
            patch.setattr(model.module, "forward", own)
            time = torch.full((len(call.latent),), call.timestep)
            latent = next(iter(model.example_inputs(1)))
            parts = call.as_returned(model.forward(**{latent: call.latent, "timestep": time, **call.conditioning}))
        if parts.shape != whole.shape:  # Kontext's pipeline takes the first tokens of the module's output.
            whole = whole[:, : parts.shape[1]]
        assert (parts - whole).abs().max() <= 1e-5 * whole.abs().max()
        count.append(call)
        return output

    monkeypatch.setattr(model.module, "forward", forward)
    pipeline(**arguments, num_inference_steps=4)
    assert count, "the pipeline made no call"


@pytest.mark.parametrize("name", ["img_ids", "txt_ids"])
def test_position_ids_other_than_those_of_the_latent_are_refused(name):
    model = tiny("flux")
    inputs = model.example_inputs(1)
    reader = CallReader(model.class_name, model.latent_shape, specs(inputs))
    ids = {"img_ids": positions(8, 8), "txt_ids": torch.zeros(7, 3)}
    call = {**inputs, "hidden_states": torch.zeros(1, 16, 16), "timestep": torch.tensor([0.5]), **ids}
    assert reader.read((), call).latent.shape == (1, 4, 8, 8)
    assert reader.read((), {**call, **{key: value[None] for key, value in ids.items()}}).latent.shape == (1, 4, 8, 8)
    with pytest.raises(RefusedCall, match=f"{name} are not those of a latent of shape"):
        reader.read((), {**call, name: ids[name] + 5})


def test_channels_of_another_pipeline_are_refused():
    inputs = {"sample": torch.zeros(1, 4, 8, 8), "timestep": torch.zeros(1), "extra_channels": torch.zeros(1, 5, 8, 8)}
    reader = CallReader("UNet2DConditionModel", (4, 8, 8), specs(inputs))
    with pytest.raises(RefusedCall, match="takes 9 channels, 4 of the latent and 5 of conditioning, got 4: use the"):
        reader.read((), {"sample": torch.zeros(1, 4, 8, 8), "timestep": 1, "encoder_hidden_states": None})


def unet_call(**changed):
    arguments = {"sample": torch.zeros(2, 4, 8, 8), "timestep": 901, "encoder_hidden_states": torch.zeros(2, 7, 12)}
    return CallReader("UNet2DConditionModel", (4, 8, 8), UNET).read((), {**arguments, **changed})


def test_arguments_at_their_defaults_and_empty_ones_count_as_left_out():
    call = unet_call(cross_attention_kwargs={}, added_cond_kwargs={"text_embeds": None}, class_labels=None)
    assert call.timestep == 901 and call.return_dict and set(call.conditioning) == {"encoder_hidden_states"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cross_attention_kwargs", {"scale": 0.5}),
        ("class_labels", torch.zeros(2)),
        ("timestep_cond", torch.zeros(2, 4)),
        ("down_block_additional_residuals", (torch.zeros(1),)),
        ("attention_mask", torch.ones(2, 7)),
        ("mid_block_additional_residual", torch.zeros(1)),
    ],
)
def test_what_the_bundle_has_no_input_for_is_refused(name, value):
    with pytest.raises(RefusedCall, match=f"the bundle has no input for {name}, which the call passes: leave it out"):
        unet_call(**{name: value})


def test_added_conditions_without_input_and_a_missing_one_are_refused():
    with pytest.raises(RefusedCall, match="no input for image_embeds, which the call passes"):
        unet_call(added_cond_kwargs={"image_embeds": torch.zeros(2, 3)})
    with pytest.raises(RefusedCall, match="the bundle needs encoder_hidden_states, the call has sample, timestep"):
        unet_call(encoder_hidden_states=None)


def test_lora_scale_is_refused_with_its_remedy():
    with pytest.raises(RefusedCall, match=r"a LoRA must be fused before tracing, with with_loras"):
        unet_call(cross_attention_kwargs={"scale": 0.5})


def test_skipped_layers_of_sd3_are_refused():
    model = tiny("sd3")
    inputs = model.example_inputs(2)
    reader = CallReader(model.class_name, model.latent_shape, specs(inputs))
    with pytest.raises(RefusedCall, match="no input for skip_layers"):
        reader.read((), {**inputs, "skip_layers": [1]})


def test_rows_with_timesteps_of_their_own_are_refused():
    with pytest.raises(RefusedCall, match="one timestep for all rows, got 2"):
        unet_call(timestep=torch.tensor([901, 881]))


def test_a_timestep_in_half_precision_may_be_off_by_its_rounding():
    call = unet_call(timestep=torch.tensor(901, dtype=torch.bfloat16))
    assert 3 < abs(call.timestep - 901) + call.tolerance < 12


def test_packed_tokens_of_another_size_are_refused():
    model = tiny("flux")
    inputs = model.example_inputs(1)
    reader = CallReader(model.class_name, model.latent_shape, specs(inputs))
    call = {**inputs, "hidden_states": torch.zeros(1, 64, 16), "timestep": torch.tensor([0.5])}
    message = r"latents of shape \(4, 8, 8\), which are 16 tokens of 16, got 64 of 16: set height and width"
    with pytest.raises(RefusedCall, match=message):
        reader.read((), call)


def test_a_class_that_is_not_of_diffusers_is_refused():
    with pytest.raises(InputError, match="Toy is not a class of diffusers"):
        CallReader("Toy", (4, 8, 8), UNET)
