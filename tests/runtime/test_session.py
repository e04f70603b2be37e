import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from dipgo_deploy.bundle import load_bundle
from dipgo_deploy.core.blocks import ZERO_MACS
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.errors import GateError, InputError, UsageError
from dipgo_deploy.core.program import Combine, Graph, Program, Run, Sample, Term
from dipgo_deploy.core.tensors import TensorSpec
from dipgo_deploy.models.samplers import sampler_spec
from dipgo_deploy.runtime import RunOptions, open_session
from dipgo_deploy.runtime.generate import run_inputs
from dipgo_deploy.runtime.memory import NumpyMemory, TorchMemory
from dipgo_deploy.runtime.session import Session
from dipgo_deploy.supernet.stepper import SamplerStepper

LATENT = ("batch", 1, 2, 2)


class AddTimestep(NumpyMemory):
    """A network that adds timestep and conditioning to its latent."""

    name = "toy"

    def bind_run(self, run: Run, buffers: Mapping, sizes: Mapping):
        inputs = {name: buffers[slot] for name, slot in run.inputs}
        target = buffers[run.outputs[0][1]]

        def call():
            target[...] = inputs["sample"] + np.float32(run.timestep) + inputs["cond"].reshape(-1, 1, 1, 1)

        return call


def graph(name="g", **fields) -> Graph:
    base = Graph(name, "main", ("prediction",), ("sample", "timestep", "cond"), (), ("prediction",), (), ZERO_MACS, 0)
    return replace(base, **fields)


def program(guidance="none", sampler="ddim", calls=None, **fields) -> Program:
    spec = sampler_spec(sampler, 2, {"clip_sample": False})
    contract = Contract("Toy", "0" * 64, "float32", spec, guidance, (1, 2, 2))
    slots = (
        TensorSpec("noise", LATENT, "float32"),
        TensorSpec("in", ("rows", 1, 2, 2), "float32"),
        TensorSpec("out", ("rows", 1, 2, 2), "float32"),
        TensorSpec("x", LATENT, "float32"),
        TensorSpec("c", ("rows",), "int64"),
    )
    copies = contract.rows_per_image
    run = Run("g", 0, 10.0, (("sample", "in"), ("cond", "c")), (("prediction", "out"),))
    halves = (Term("out", 1.0, -1.0, "first"), Term("out", 0.0, 1.0, "second"))
    default = (
        Combine("in", (Term("noise", 1.0),), 0, copies),
        run,
        Combine("x", halves if copies == 2 else (Term("out", 1.0),), 0),
    )
    base = Program(
        contract, "stage", "output", "subnets", (graph(),), slots, calls or default, "noise", "x", (("cond", "c"),)
    )
    return replace(base, **fields)


NOISE = np.random.default_rng(0).standard_normal((2, 1, 2, 2)).astype(np.float32)


def test_calls_run_in_order_on_bound_slots():
    session = Session(program(), AddTimestep(), 2)
    image = session.run(NOISE, {"cond": np.array([1, 2])})
    assert np.array_equal(image, NOISE + np.float32(10) + np.array([1, 2], np.float32).reshape(-1, 1, 1, 1))
    assert image.dtype == np.float32


class Poisoned(AddTimestep):
    """The same network with a weight that is not a number."""

    def bind_run(self, run: Run, buffers: Mapping, sizes: Mapping):
        call, target = super().bind_run(run, buffers, sizes), buffers[run.outputs[0][1]]
        return lambda: (call(), target.fill(np.nan))


@pytest.mark.parametrize(("dtype", "cause"), [("float32", "weights are damaged"), ("float16", "float16 cannot hold")])
def test_a_run_that_ends_in_nan_is_an_error(dtype, cause):
    made = program()
    session = Session(replace(made, contract=replace(made.contract, dtype=dtype)), Poisoned(), 2)
    with pytest.raises(GateError, match=f"the latents of this run hold NaN or infinity, .*{cause}"):
        session.run(NOISE, {"cond": np.array([1, 2])})
    assert np.isnan(session.run(NOISE, {"cond": np.array([1, 2])}, check_finite=False)).all()
    with pytest.raises(UsageError, match="noise holds NaN or infinity: pass finite numbers"):
        session.run(NOISE * np.float32(np.inf), {"cond": np.array([1, 2])})


def test_guidance_takes_the_unconditional_half_first():
    session = Session(program("concat"), AddTimestep(), 2, guidance_scale=3.0)
    image = session.run(NOISE, {"cond": np.array([0, 0, 1, 2])})
    expected = NOISE + 10 + 3.0 * np.array([1, 2]).reshape(-1, 1, 1, 1)
    assert np.abs(image - expected).max() < 1e-4


def test_iterate_yields_after_every_call_and_slots_can_be_read():
    session = Session(program(), AddTimestep(), 2)
    seen = []
    for index, call in session.iterate(NOISE, {"cond": np.array([0, 0])}):
        seen.append((index, call.op))
        if index == 0:
            assert np.array_equal(session.slot("in"), NOISE)
            assert np.isnan(session.slot("out")).all()  # not yet written
    assert seen == [(0, "combine"), (1, "run"), (2, "combine")]


def test_a_slot_read_is_a_copy_and_a_slot_can_be_written():
    session = Session(program(), AddTimestep(), 2)
    before = session.slot("x")
    session.write("x", NOISE)
    assert np.isnan(before).all() and np.array_equal(session.slot("x"), NOISE)
    with pytest.raises(UsageError, match="there is no slot 'y': the program has noise, in, out, x, c"):
        session.slot("y")


@pytest.mark.parametrize(
    ("noise", "conditioning", "message"),
    [
        (NOISE[:1], {"cond": np.zeros(2, int)}, r"noise must have shape \(2, 1, 2, 2\), got \(1, 1, 2, 2\)"),
        (NOISE.astype(complex), {"cond": np.zeros(2, int)}, "noise must have dtype float32, got complex128"),
        (NOISE, {"cond": np.zeros(2)}, "conditioning 'cond' must have dtype int64, got float64"),
        (NOISE, {"cond": np.zeros(3, int)}, r"conditioning 'cond' must have shape \(2,\), got \(3,\)"),
        (NOISE, {}, "conditioning 'cond' is missing: the program takes cond"),
        (NOISE, {"cond": np.zeros(2, int), "z": NOISE}, "conditioning 'z' is unknown: the program takes cond"),
    ],
)
def test_inputs_are_checked(noise, conditioning, message):
    session = Session(program(), AddTimestep(), 2)
    with pytest.raises(UsageError, match=message):
        session.run(noise, conditioning)


class Capturing(AddTimestep):
    """Memory that captures calls and counts captures and replays."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def capture(self, calls):
        self.events.append(f"capture {len(calls)}")

        def replay():
            self.events.append("replay")
            for call in calls:
                call()

        return replay


def test_a_cuda_graph_is_captured_after_the_first_run_and_replayed():
    memory = Capturing()
    session = Session(program(), memory, 2, cuda_graph=True)
    first = session.run(NOISE, {"cond": np.array([1, 2])})
    assert memory.events == ["capture 3"]
    assert np.array_equal(session.run(NOISE, {"cond": np.array([1, 2])}), first)
    assert memory.events == ["capture 3", "replay"]
    with pytest.raises(UsageError, match="cuda_graph cannot hold the steps of DDPMScheduler, which run on the host"):
        Session(sampled("ddpm"), memory, 2, cuda_graph=True)


@pytest.mark.parametrize("memory", [NumpyMemory, TorchMemory])
def test_memory_on_the_cpu_has_no_cuda_graphs(memory):
    with pytest.raises(UsageError, match="cuda_graph needs device cuda, the device is cpu: leave it out"):
        memory().capture([])


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(UsageError, match="batch must be at least 1, got 0"):
        Session(program(), AddTimestep(), 0)
    with pytest.raises(UsageError, match="guidance_scale must be finite, got nan"):
        Session(program("concat"), AddTimestep(), 1, float("nan"))
    with pytest.raises(UsageError, match="guidance_scale is 4, but the program was made without guidance"):
        Session(program(), AddTimestep(), 1, 4.0)


def test_inconsistent_programs_are_refused():
    good = program()
    with pytest.raises(InputError, match="call 1 names slot 'out'"):
        Session(replace(good, slots=good.slots[:2] + good.slots[3:]), AddTimestep(), 1)
    with pytest.raises(InputError, match="the program names slot 'y'"):
        Session(replace(good, image="y"), AddTimestep(), 1)
    with pytest.raises(InputError, match="declares slot noise 2 times"):
        Session(replace(good, slots=(*good.slots, good.slots[0])), AddTimestep(), 1)
    run = Run("g", 0, 1.0, (("sample", "in"),), (("prediction", "in"),))
    with pytest.raises(InputError, match="call 0 writes slot in while it reads it"):
        Session(replace(good, calls=(run,)), AddTimestep(), 1)
    run = Run("g", 0, 1.0, (("sample", "in"),), (("prediction", "out"), ("b:0", "out")))
    with pytest.raises(InputError, match="call 0 writes two outputs to one slot"):
        Session(replace(good, calls=(run,)), AddTimestep(), 1)


def sampled(sampler: str) -> Program:
    """The 'network' is the identity; the sampler makes all its steps."""
    calls: list = []
    latent = "noise"
    for step in range(2):
        calls += [Combine("out", (Term(latent, 0.5),), step), Sample(step, latent, "out", "x")]
        latent = "x"
    return program(sampler=sampler, calls=tuple(calls), conditioning=())


@pytest.mark.parametrize("sampler", ["ddpm", "euler-a", "ddim"])
def test_sample_calls_make_the_schedulers_own_steps(sampler):
    made = sampled(sampler)
    image = Session(made, AddTimestep(), 2).run(NOISE, {}, seed=3)
    stepper = SamplerStepper(made.contract.sampler)
    stepper.restart(2, 3)
    latent = torch.from_numpy(NOISE)
    for step in range(2):
        stepper.scale_input(step, latent)
        latent = stepper.advance(step, 0.5 * latent, latent)
    assert np.array_equal(image, latent.numpy())


@pytest.mark.parametrize("memory", [NumpyMemory, TorchMemory])
def test_sampler_noise_repeats_and_does_not_depend_on_the_batch(memory):
    made = sampled("ddpm")
    session = Session(made, memory(), 2)
    both = session.run(NOISE, {}, seed=3)
    other = session.run(NOISE, {}, seed=4)
    assert np.array_equal(session.run(NOISE, {}, seed=3), both)
    assert np.abs(both - other).max() > 1e-3
    assert np.array_equal(Session(made, memory(), 1).run(NOISE[1:], {}, seed=4), both[1:])


def test_a_sampler_with_a_history_starts_again():
    session = Session(sampled("unipc"), AddTimestep(), 2)
    first = session.run(NOISE, {})
    session.run(NOISE[::-1] * 3, {})
    assert np.array_equal(session.run(NOISE, {}), first)


def test_memory_dtypes():
    spec = TensorSpec("s", ("rows", 2), "bfloat16")
    with pytest.raises(UsageError, match="slot s is bfloat16, which NumPy lacks"):
        NumpyMemory().allocate(spec, {"rows": 1})
    memory = TorchMemory()
    buffer = memory.allocate(spec, {"rows": 1})
    memory.write(buffer, np.array([[1.0, 1.00390625]]))
    assert memory.read(buffer).dtype == np.float32 and memory.read(buffer)[0, 0] == 1.0
    memory.write(buffer, np.array([[1.0, 2.0]])[:, ::-1])
    assert memory.read(buffer).tolist() == [[2.0, 1.0]]
    assert TorchMemory(dtype="float64").allocate(spec, {"rows": 1}).dtype == torch.float64
    with pytest.raises(UsageError, match="dtype 'int8' is not a floating dtype"):
        TorchMemory(dtype="int8")
    with pytest.raises(UsageError, match="device 'tpu' is unknown"):
        TorchMemory("tpu")


class Slow(AddTimestep):
    """A network that takes its time between reading and writing, so that threads meet inside it."""

    def bind_run(self, run: Run, buffers: Mapping, sizes: Mapping):
        call = super().bind_run(run, buffers, sizes)
        return lambda: (time.sleep(0.01), call(), time.sleep(0.01))


def test_threads_that_share_a_session_wait_for_each_other():
    session = Session(program(), Slow(), 2)
    conditioning = [{"c": np.array([k, k + 1], np.int64)} for k in range(4)]
    alone = [session.run(NOISE * k, {"cond": inputs["c"]}) for k, inputs in enumerate(conditioning)]
    with ThreadPoolExecutor(4) as pool:
        made = pool.map(lambda k: session.run(NOISE * k, {"cond": conditioning[k]["c"]}), range(4))
        assert all(np.array_equal(one, other) for one, other in zip(made, alone, strict=True))


def test_a_run_call_by_call_is_refused_once_another_has_begun():
    session = Session(program(), AddTimestep(), 2)
    inputs = NOISE, {"cond": np.zeros(2, np.int64)}
    steps = session.iterate(*inputs)
    next(steps)
    session.run(*inputs)
    with pytest.raises(
        UsageError, match="another run has begun in the middle of this run, .* or call run, which waits"
    ):
        next(steps)
    session.begin(*inputs)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(session.begin, *inputs).result()
    with pytest.raises(UsageError, match="open a session for each thread"):
        session.go()


def test_sessions_of_one_live_model_do_not_gate_it_at_once(sd_bundle):
    bundle = load_bundle(sd_bundle)
    inputs = run_inputs(bundle.model, bundle.contract, (3,))
    sessions = [open_session(bundle, 1, RunOptions("torch"), guidance_scale=4.0) for _ in range(2)]
    expected = sessions[0].run(*inputs)
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda session: session.run(*inputs), sessions))
    assert all(np.array_equal(images, expected) for images in made)
