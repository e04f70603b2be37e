from dataclasses import replace

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel
from torch import nn

from dipgo_deploy.core.blocks import PREDICTION
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.schedule import Schedule, full_schedule
from dipgo_deploy.models.samplers import sampler_spec
from dipgo_deploy.models.schedulers import scheduler_from_spec
from dipgo_deploy.supernet.rollout import Rollout, reference_trajectory
from dipgo_deploy.supernet.surgery import match_blocks

torch.set_num_threads(1)
CONFIG = {"beta_schedule": "scaled_linear", "clip_sample": False, "timestep_spacing": "trailing"}


class Tiny:
    """A network as the reference wants it."""

    def __init__(self, module: nn.Module, patterns: list[str]) -> None:
        self.module = module.eval()
        self.blocks = (*match_blocks(module, patterns), PREDICTION)

    def forward(self, **inputs):
        return self.module(**inputs, return_dict=False)[0]


def tiny_unet(dtype=torch.float32) -> Tiny:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    return Tiny(unet.to(dtype), ["down_blocks.*", "mid_block", "up_blocks.*"])


def tiny_dit(dtype=torch.float32, out_channels=1) -> Tiny:
    torch.manual_seed(0)
    dit = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=1,
        out_channels=out_channels,
        num_layers=3,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
        norm_num_groups=1,
    )
    return Tiny(dit.to(dtype), ["transformer_blocks.*"])


def conditioning_of(model: Tiny, rows: int) -> dict[str, torch.Tensor]:
    if isinstance(model.module, DiTTransformer2DModel):
        return {"class_labels": torch.arange(rows) % 10}
    return {"encoder_hidden_states": torch.randn(rows, 3, 8, generator=torch.Generator().manual_seed(5))}


def schedule_of(model: Tiny, steps=4, sampler="ddim", guidance="none", kind="output", reused=(), forecasts=None):
    spec = sampler_spec(sampler, steps, CONFIG)
    contract = Contract("Tiny", "0" * 64, "float32", spec, guidance, (1, 8, 8))
    full = full_schedule(contract, "stage", kind, model.blocks)
    computed = [frozenset(b for b in full.blocks if (s, b) not in set(reused)) for s in range(full.steps)]
    return replace(full.with_compute(computed), forecasts=forecasts or {})


def noise_of(batch: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


@torch.no_grad()
def plain_sampling(model: Tiny, schedule: Schedule, noise, conditioning, scale=1.0):
    scheduler = scheduler_from_spec(schedule.contract.sampler)
    latent = noise * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        entry = scheduler.scale_model_input(latent, timestep)
        concat = schedule.contract.guidance == "concat"
        rows = torch.cat([entry, entry]) if concat else entry
        output = model.forward(
            **{"sample" if "encoder_hidden_states" in conditioning else "hidden_states": rows},
            timestep=timestep.to(torch.float32).expand(len(rows)),
            **conditioning,
        )[:, : noise.shape[1]]
        if concat:
            u, c = output.chunk(2)
            output = u + scale * (c - u)
        latent = scheduler.step(output, timestep, latent, return_dict=False)[0]
    return latent


def double(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: v.double() if v.is_floating_point() else v for name, v in values.items()}


@pytest.mark.parametrize("guidance", ["none", "concat"])
@pytest.mark.parametrize("sampler", ["ddim", "heun", "pndm"])
@pytest.mark.parametrize("make", [tiny_unet, tiny_dit])
def test_with_everything_computed_it_is_the_plain_model_bit_for_bit(make, sampler, guidance):
    model = make()
    schedule = schedule_of(model, sampler=sampler, guidance=guidance)
    conditioning = conditioning_of(model, 2 * schedule.contract.rows_per_image)
    steps = list(reference_trajectory(model, schedule, noise_of(2), conditioning, guidance_scale=3.0))
    assert torch.equal(steps[-1].latent, plain_sampling(model, schedule, noise_of(2), conditioning, 3.0))
    assert len(steps) == schedule.steps and all(step.called for step in steps)


def test_double_precision_agrees_with_single():
    schedule = schedule_of(tiny_dit(), reused=[(1, "transformer_blocks.0")])
    conditioning = conditioning_of(tiny_dit(), 2)
    single = list(reference_trajectory(tiny_dit(), schedule, noise_of(2), conditioning))[-1].latent
    wide = list(reference_trajectory(tiny_dit(torch.float64), schedule, noise_of(2), double(conditioning)))[-1].latent
    assert wide.dtype == torch.float64
    assert (single - wide).abs().max() < 1e-5 * wide.abs().max()


def test_a_learned_sigma_is_left_out():
    model = tiny_dit(out_channels=2)
    schedule = schedule_of(model, guidance="concat")
    conditioning = conditioning_of(model, 2)
    steps = list(reference_trajectory(model, schedule, noise_of(1), conditioning, guidance_scale=2.0))
    assert steps[0].prediction.shape == (2, 2, 8, 8)
    assert torch.equal(steps[-1].latent, plain_sampling(model, schedule, noise_of(1), conditioning, 2.0))


def test_a_reused_block_holds_its_last_feature_and_later_ones_see_it():
    model = tiny_unet()
    reused = [(1, "mid_block"), (2, "mid_block")]
    schedule = schedule_of(model, reused=reused)
    seen = []
    original = model.module.up_blocks[0].forward

    def spy(*args, **kwargs):
        seen.append(kwargs["hidden_states"].clone())
        return original(*args, **kwargs)

    model.module.up_blocks[0].forward = spy
    steps = list(reference_trajectory(model, schedule, noise_of(2), conditioning_of(model, 2)))
    kept = steps[0].stored["mid_block:0"]
    assert torch.equal(seen[0], kept) and torch.equal(seen[1], kept) and torch.equal(seen[2], kept)
    assert not torch.equal(seen[3], kept)
    assert "mid_block:0" not in steps[1].stored and "mid_block:0" in steps[3].stored


def test_a_forecast_combines_the_last_computed_features():
    model = tiny_unet()
    schedule = schedule_of(model, reused=[(2, PREDICTION)], forecasts={(2, PREDICTION): (2.0, -1.0)})
    steps = list(reference_trajectory(model, schedule, noise_of(1), conditioning_of(model, 1)))
    expected = 2.0 * steps[1].prediction - steps[0].prediction
    assert (steps[2].prediction - expected).abs().max() <= 1e-6
    assert steps[2].called  # the other blocks are computed, so the network runs, and its output is dropped
    assert PREDICTION not in steps[2].stored and "mid_block:0" in steps[2].stored


def test_a_step_that_reuses_all_calls_no_network():
    model = tiny_unet()
    schedule = schedule_of(model, reused=[(1, block) for block in model.blocks])
    steps = list(reference_trajectory(model, schedule, noise_of(1), conditioning_of(model, 1)))
    assert not steps[1].called and not steps[1].stored
    assert torch.equal(steps[1].prediction, steps[0].prediction)


def test_a_residual_is_added_to_the_input_of_the_step_at_hand():
    model = tiny_dit()
    name = "transformer_blocks.1"
    schedule = schedule_of(model, kind="residual", reused=[(1, name)])
    first, last = model.module.transformer_blocks[0], model.module.transformer_blocks[2]
    left_first, entered_last = [], []
    first.register_forward_hook(lambda module, args, output: left_first.append(output.clone()))
    last.register_forward_pre_hook(lambda module, args: entered_last.append(args[0].clone()))
    steps = list(reference_trajectory(model, schedule, noise_of(1), conditioning_of(model, 1)))
    residual = steps[0].stored[f"{name}:residual"]
    assert torch.equal(residual, entered_last[0] - left_first[0])
    assert torch.equal(entered_last[1], left_first[1] + residual)
    assert f"{name}:residual" not in steps[1].stored and f"{name}:residual" in steps[2].stored


def test_images_do_not_depend_on_the_batch_under_a_noisy_sampler():
    model = tiny_unet()
    schedule = schedule_of(model, sampler="ddpm")
    both = list(reference_trajectory(model, schedule, noise_of(2), conditioning_of(model, 2), seed=7))[-1].latent
    again = list(reference_trajectory(model, schedule, noise_of(2), conditioning_of(model, 2), seed=7))[-1].latent
    one = {"encoder_hidden_states": conditioning_of(model, 2)["encoder_hidden_states"][1:]}
    second = list(reference_trajectory(model, schedule, noise_of(2)[1:], one, seed=8))[-1].latent
    other = list(reference_trajectory(model, schedule, noise_of(2), conditioning_of(model, 2), seed=9))[-1].latent
    assert torch.equal(both, again)
    assert (both[1:] - second).abs().max() < 1e-5 * both.abs().max()
    assert (both - other).abs().max() > 1e-2


def test_the_model_is_itself_between_steps_and_gradients_stay_on():
    model = tiny_unet()
    schedule = schedule_of(model)
    for _ in reference_trajectory(model, schedule, noise_of(1), conditioning_of(model, 1)):
        assert torch.is_grad_enabled()
        assert all("forward" not in module.__dict__ for module in model.module.modules())


def test_a_schedule_that_reads_before_it_computes_is_refused():
    model = tiny_unet()
    schedule = schedule_of(model, reused=[(0, "mid_block")])
    with pytest.raises(InputError, match="step 0 reuses mid_block"):
        next(reference_trajectory(model, schedule, noise_of(1), conditioning_of(model, 1)))


def forkable(model: Tiny, sampler: str, **fields) -> Rollout:
    return Rollout(model, schedule_of(model, sampler=sampler, **fields), noise_of(2), conditioning_of(model, 2), seed=3)


@pytest.mark.parametrize("sampler", ["ddim", "pndm", "euler-a"])
@pytest.mark.parametrize("kind", ["output", "residual"])
def test_a_fork_continues_as_its_own_schedule_would_have_and_leaves_the_first_alone(sampler, kind):
    model = tiny_dit()
    late = [(3, "transformer_blocks.0"), (3, "transformer_blocks.1")]
    # The first reuses at step 2 what the second, which runs before it, computes again there.
    early = [(2, "transformer_blocks.0")]
    first = forkable(model, sampler, kind=kind, reused=early)
    first.advance(), first.advance()
    second = first.fork(schedule_of(model, sampler=sampler, kind=kind, reused=late))
    for rollout, reused in ((second, late), (first, early)):
        while rollout.step < rollout.schedule.steps:
            last = rollout.advance()
        alone = list(
            reference_trajectory(
                model,
                schedule_of(model, sampler=sampler, kind=kind, reused=reused),
                noise_of(2),
                conditioning_of(model, 2),
                seed=3,
            )
        )
        assert torch.equal(last.latent, alone[-1].latent)


def test_a_fork_to_a_schedule_that_differs_before_or_forecasts_is_refused():
    model = tiny_dit()
    rollout = forkable(model, "ddim")
    rollout.advance(), rollout.advance()
    with pytest.raises(UsageError, match="a fork at step 2 needs a schedule that agrees up to that step"):
        rollout.fork(schedule_of(model, reused=[(1, "transformer_blocks.0")]))
    with pytest.raises(UsageError, match="agrees up to that step"):
        rollout.fork(schedule_of(model, kind="residual"))
    forecast = schedule_of(model, reused=[(3, PREDICTION)], forecasts={(3, PREDICTION): (2.0, -1.0)})
    with pytest.raises(UsageError, match="a fork needs schedules that hold"):
        rollout.fork(forecast)
