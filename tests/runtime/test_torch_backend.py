from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel
from torch import nn

from dipgo_deploy.core.blocks import PREDICTION, ZERO_MACS, Block, BlockGraph
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.errors import InputError, MissingError, UsageError
from dipgo_deploy.core.program import Combine, Graph, Program, Run, Term
from dipgo_deploy.core.schedule import Schedule, full_schedule
from dipgo_deploy.core.tensors import Dim, TensorSpec
from dipgo_deploy.models.samplers import sampler_spec
from dipgo_deploy.models.schedulers import scheduler_from_spec
from dipgo_deploy.runtime.session import Session
from dipgo_deploy.runtime.torch_backend import TorchBackend
from dipgo_deploy.supernet.backup import flatten_feature
from dipgo_deploy.supernet.rollout import reference_trajectory
from dipgo_deploy.supernet.surgery import gated, match_blocks

torch.set_num_threads(1)
SCALE = 3.0


class Tiny:
    """A network with the members that the backend needs."""

    def __init__(self, module: nn.Module, patterns: list[str], condition: str) -> None:
        self.module, self.condition = module.eval(), condition
        self.names = match_blocks(module, patterns)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    def example_inputs(self, rows: int) -> dict[str, torch.Tensor]:
        first = "sample" if self.condition == "encoder_hidden_states" else "hidden_states"
        latent = torch.zeros(rows, 1, 8, 8, dtype=self.dtype)
        condition = torch.from_numpy(self.conditioning(rows)[self.condition])
        condition = condition.to(self.dtype) if condition.is_floating_point() else condition
        return {first: latent, "timestep": torch.ones(rows), self.condition: condition}

    def conditioning(self, rows: int) -> dict[str, np.ndarray]:
        if self.condition == "class_labels":
            return {"class_labels": np.arange(rows) % 10}
        return {"encoder_hidden_states": np.random.default_rng(5).standard_normal((rows, 3, 8)).astype(np.float32)}

    def forward(self, **inputs):
        return self.module(**inputs, return_dict=False)[0]

    def blocks(self) -> BlockGraph:
        """The parts of the graph that the backend reads: inputs, blocks and their features."""
        features: dict[str, tuple[str, ...]] = {}
        shapes: dict[str, tuple[Dim, ...]] = {}

        def record(block, forward, args, kwargs):
            feature = forward(*args, **kwargs)
            tensors = flatten_feature(feature)[0]
            features[block] = tuple(f"{block}:{i}" for i in range(len(tensors)))
            shapes.update(zip(features[block], (("rows", *tensor.shape[1:]) for tensor in tensors), strict=True))
            return feature

        inputs = self.example_inputs(1)
        with torch.no_grad(), gated(self.module, self.names, record):
            self.forward(**inputs)
        features[PREDICTION] = (PREDICTION,)
        specs = tuple(
            TensorSpec(n, ("rows", *t.shape[1:]), str(t.dtype).removeprefix("torch.")) for n, t in inputs.items()
        )
        values = {s.name: s for s in specs}
        values |= {name: TensorSpec(name, shape, "float32") for name, shape in shapes.items()}
        blocks = tuple(Block(name, tensors, None, ZERO_MACS, 0) for name, tensors in features.items())
        return BlockGraph("Tiny", "0" * 64, "stage", (), "float32", specs, blocks, (), values)


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
    return Tiny(unet.to(dtype), ["down_blocks.*", "mid_block", "up_blocks.*"], "encoder_hidden_states")


def tiny_dit(dtype=torch.float32) -> Tiny:
    torch.manual_seed(0)
    dit = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=1,
        out_channels=1,
        num_layers=3,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
        norm_num_groups=1,
    )
    return Tiny(dit.to(dtype), ["transformer_blocks.*"], "class_labels")


def contract_of() -> Contract:
    config = {"beta_schedule": "scaled_linear", "clip_sample": False, "timestep_spacing": "trailing"}
    return Contract("Tiny", "0" * 64, "float32", sampler_spec("ddim", 3, config), "concat", (1, 8, 8))


def ddim_coefficients(contract: Contract) -> list[tuple[float, float]]:
    """Of latent and output, step by step: DDIM has no memory."""
    scheduler, pairs = scheduler_from_spec(contract.sampler), []
    one, zero = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    for timestep in scheduler.timesteps:
        latent, output = (scheduler.step(o, timestep, x, return_dict=False)[0] for o, x in ((zero, one), (one, zero)))
        pairs.append((latent.item(), output.item()))
    return pairs


def guided(slot: str, c: float) -> tuple[Term, Term]:
    return Term(slot, c, -c, "first"), Term(slot, 0.0, c, "second")


def schedule_of(model: Tiny, kind: str, reused: str) -> Schedule:
    """Step 0 computes all, step 1 reuses one block, step 2 the forecast prediction."""
    contract, names = contract_of(), (*model.blocks().block_names,)
    full = full_schedule(contract, "stage", kind, names)
    everything = frozenset(names)
    made = full.with_compute([everything, everything - {reused}, frozenset()])
    held = {(2, name): (1.0,) for name in names if name != PREDICTION}
    return replace(made, forecasts={**held, (2, PREDICTION): (2.0, -1.0)})


def program_of(model: Tiny, kind: str, kept: str, shape: tuple, second: Graph) -> Program:
    """The same by hand: graph g0, then ``second``, which reads the slot ``kept``, then no call."""
    contract, blocks = contract_of(), model.blocks()
    latent, *_, condition = (spec.name for spec in blocks.inputs)
    every = tuple(name for name in blocks.block_names)
    g0 = Graph("g0", "main", every, tuple(s.name for s in blocks.inputs), (), (kept, PREDICTION), (), ZERO_MACS, 0)
    rows = ("rows", 1, 8, 8)
    slots = (
        *(TensorSpec(name, ("batch", 1, 8, 8), "float32") for name in ("noise", "x1", "x2", "x3")),
        *(TensorSpec(name, rows, "float32") for name in ("in", "e0", "e1")),
        TensorSpec("kept", ("rows", *shape), "float32"),
        replace(blocks.inputs[-1], name="c"),
    )
    (a0, b0), (a1, b1), (a2, b2) = ddim_coefficients(contract)
    conditions = (("class_labels", "c"),) if condition == "class_labels" else ()
    times = contract.sampler.timesteps
    calls = (
        Combine("in", (Term("noise", 1.0),), 0, 2),
        Run("g0", 0, times[0], ((latent, "in"), (condition, "c")), ((kept, "kept"), (PREDICTION, "e0"))),
        Combine("x1", (Term("noise", a0), *guided("e0", b0)), 0),
        Combine("in", (Term("x1", 1.0),), 1, 2),
        Run("g1", 1, times[1], ((latent, "in"), (kept, "kept"), *conditions), ((PREDICTION, "e1"),)),
        Combine("x2", (Term("x1", a1), *guided("e1", b1)), 1),
        Combine("x3", (Term("x2", a2), *guided("e1", 2.0 * b2), *guided("e0", -b2)), 2),
    )
    graphs = (g0, replace(second, name="g1"))
    return Program(contract, "stage", kind, "subnets", graphs, slots, calls, "noise", "x3", ((condition, "c"),))


def unet_case(dtype=torch.float32):
    """Step 1 reuses the first up stage: what lies below it, and with it the conditioning, is dead."""
    model = tiny_unet(dtype)
    computes = ("down_blocks.0", "up_blocks.1", PREDICTION)
    g1 = Graph("", "main", computes, ("sample", "timestep"), ("up_blocks.0:0",), (PREDICTION,), (), ZERO_MACS, 0)
    program = program_of(model, "output", "up_blocks.0:0", (16, 8, 8), g1)
    return model, program, schedule_of(model, "output", "up_blocks.0")


def dit_case(dtype=torch.float32):
    """Step 1 reuses the residual of the middle block."""
    model, name = tiny_dit(dtype), "transformer_blocks.1"
    computes = ("transformer_blocks.0", "transformer_blocks.2", PREDICTION)
    inputs = ("hidden_states", "timestep", "class_labels")
    g1 = Graph("", "main", computes, inputs, (f"{name}:residual",), (PREDICTION,), (), ZERO_MACS, 0)
    program = program_of(model, "residual", f"{name}:residual", (16, 8), g1)
    return model, program, schedule_of(model, "residual", name)


def noise_of(batch: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((batch, 1, 8, 8)).astype(np.float32)


def reference_of(model: Tiny, schedule: Schedule, batch: int) -> list:
    steps = reference_trajectory(model, schedule, noise_of(batch), model.conditioning(2 * batch), guidance_scale=SCALE)
    return list(steps)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("case", [unet_case, dit_case])
def test_a_program_on_torch_is_the_reference(case, dtype, tolerance):
    model, program, schedule = case(getattr(torch, dtype))
    steps = reference_of(model, schedule, 2)
    session = Session(program, TorchBackend(model, model.blocks(), program, dtype=dtype), 2, SCALE)
    image = session.run(noise_of(2), model.conditioning(4))
    assert image.dtype == np.dtype(dtype)
    pairs = {"x1": steps[0].latent, "x2": steps[1].latent, "x3": steps[2].latent, "e1": steps[1].prediction}
    for slot, expected in pairs.items():
        value = torch.from_numpy(session.slot(slot))
        assert (value - expected).abs().max() <= tolerance * expected.abs().max(), slot
    assert not steps[2].called


@pytest.mark.parametrize("case", [unet_case, dit_case])
def test_reuse_matters_in_these_cases(case):
    model, _, schedule = case()
    everything = [frozenset(schedule.blocks)] * 3
    full = replace(schedule.with_compute(everything), forecasts={})
    change = reference_of(model, full, 1)[1].prediction - reference_of(model, schedule, 1)[1].prediction
    assert change.abs().max() > 1e-3


@pytest.mark.parametrize("case", [unet_case, dit_case])
def test_a_run_uses_nothing_of_the_run_before(case):
    model, program, _ = case()
    session = Session(program, TorchBackend(model, model.blocks(), program), 2, SCALE)
    first = session.run(noise_of(2), model.conditioning(4))
    assert not np.array_equal(session.run(noise_of(2) * 2, model.conditioning(4)), first)
    assert np.array_equal(session.run(noise_of(2), model.conditioning(4)), first)


def test_a_block_wrongly_taken_for_dead_shows_as_nan():
    model, program, _ = unet_case()
    g0, g1 = program.graphs
    wrong = replace(program, graphs=(g0, replace(g1, computes=("up_blocks.1", PREDICTION))))
    session = Session(wrong, TorchBackend(model, model.blocks(), wrong), 1, SCALE)
    assert np.isnan(session.run(noise_of(1), model.conditioning(2), check_finite=False)).any()


def test_the_model_is_left_as_it_was():
    model, program, _ = unet_case()
    session = Session(program, TorchBackend(model, model.blocks(), program), 1, SCALE)
    for _ in session.iterate(noise_of(1), model.conditioning(2)):
        assert all("forward" not in module.__dict__ for module in model.module.modules())
        assert torch.is_grad_enabled()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-2), ("bfloat16", 8e-2)])
def test_half_precision_networks_run_on_a_single_precision_program(dtype, tolerance):
    model, program, schedule = dit_case(getattr(torch, dtype))
    session = Session(program, TorchBackend(model, model.blocks(), program), 1, SCALE)
    value = torch.from_numpy(session.run(noise_of(1), model.conditioning(2)))
    expected = reference_of(model, schedule, 1)[-1].latent
    assert value.dtype == expected.dtype == torch.float32
    assert (value - expected).abs().max() <= tolerance * expected.abs().max()


def test_models_and_programs_that_do_not_fit_are_refused(monkeypatch):
    model, program, _ = unet_case()
    blocks = model.blocks()
    with pytest.raises(UsageError, match="backend torch runs layout subnets, the program has segments"):
        TorchBackend(model, blocks, replace(program, layout="segments"))
    with pytest.raises(InputError, match=r"UNet2DConditionModel has no block transformer_blocks.0"):
        TorchBackend(model, tiny_dit().blocks(), program)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingError, match="no CUDA GPU"):
        TorchBackend(model, blocks, program, device="cuda")
    odd = replace(blocks, blocks=(replace(blocks.blocks[0], features=("down_blocks.0:0",)), *blocks.blocks[1:]))
    with pytest.raises(InputError, match=r"block down_blocks.0 returns 2 tensors, but 1 were traced"):
        Session(program, TorchBackend(model, odd, program), 1, SCALE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (Run("g9", 0, 1.0, (), ()), "the program runs graph 'g9', which it does not describe"),
        (Run("g1", 0, 1.0, (("mid:0", "kept"),), ()), "graph g1 reads mid:0, which the traced model does not have"),
        (Run("g1", 0, 1.0, (), (("mid_block:0", "kept"),)), "graph g1 writes mid_block:0, but does not compute it"),
    ],
)
def test_a_run_that_does_not_fit_is_refused(call, message):
    model, program, _ = unet_case()
    with pytest.raises(InputError, match=message):
        Session(replace(program, calls=(call,)), TorchBackend(model, model.blocks(), program), 1, SCALE)


@pytest.mark.parametrize("keep", [1.0, 0.6])
def test_compiled_calls_give_what_eager_ones_give(digits_unet, traced, keep):
    from dipgo_deploy.core.sampler import noise_for
    from dipgo_deploy.lowering import lower
    from dipgo_deploy.models import make_contract
    from dipgo_deploy.models.sampler_coefficients import read_sampler
    from dipgo_deploy.runtime.session import Session
    from dipgo_deploy.search.random_schedules import random_schedule

    blocks, contract = traced("digits-unet", "stage").blocks, make_contract(digits_unet, steps=3)
    schedule = random_schedule(blocks, contract, "output", np.random.default_rng(0), keep)
    program = lower(schedule, blocks, read_sampler(contract.sampler))
    inputs = noise_for(range(2), contract.latent_shape), digits_unet.conditioning([1, 2], "none")
    eager, compiled = (
        Session(program, TorchBackend(digits_unet, blocks, program, compiler=compiler), 2)
        for compiler in (None, "eager")
    )
    np.testing.assert_allclose(compiled.run(*inputs), eager.run(*inputs), atol=1e-5)
    names = set(compiled.backend._compiled)
    assert names == {""} if keep == 1 else names and names <= set(blocks.block_names)
