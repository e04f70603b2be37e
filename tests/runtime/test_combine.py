import numpy as np
import pytest
import torch

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.program import Combine, Term
from dipgo_deploy.runtime.memory import bind_numpy_combine, bind_torch_combine

torch.set_num_threads(1)


def run_numpy(combine, arrays, scale=1.0):
    buffers = {name: array.copy() for name, array in arrays.items()}
    bind_numpy_combine(combine, buffers, scale)()
    return buffers[combine.target]


def run_torch(combine, arrays, scale=1.0):
    buffers = {name: torch.tensor(array) for name, array in arrays.items()}
    bind_torch_combine(combine, buffers, scale)()
    return buffers[combine.target].numpy()


both = pytest.mark.parametrize("run", [run_numpy, run_torch])


def noise(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def parts(array, half):
    middle = len(array) // 2
    return {"all": array, "first": array[:middle], "second": array[middle:]}[half].astype(np.float64)


@both
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_halves_guidance_channels_and_copies_against_float64(run, dtype):
    arrays = {"x": noise(3, 2, 4, 4, dtype=dtype), "e": noise(6, 4, 4, 4, dtype=dtype, seed=1)}
    arrays["t"] = np.full((6, 2, 4, 4), np.nan, dtype)
    terms = (
        Term("x", 0.7),
        Term("e", -0.3, guided=0.3, half="first", channels=2),
        Term("e", 0.0, guided=-0.3, half="second", channels=2),
    )
    total = run(Combine("t", terms, 0, copies=2), arrays, scale=4.0)
    once = 0.7 * parts(arrays["x"], "all") + 0.9 * parts(arrays["e"], "first")[:, :2]
    once = once - 1.2 * parts(arrays["e"], "second")[:, :2]
    exact = np.concatenate([once, once])
    assert total.dtype == dtype
    assert np.abs(total - exact).max() <= {2: 1e-3, 4: 1e-6, 8: 1e-15}[total.itemsize] * np.abs(exact).max()


@both
def test_half_precision_slots_are_accumulated_in_single_precision(run):
    arrays = {
        "a": np.full((2, 1), 2048, np.float16),
        "b": np.ones((2, 1), np.float16),
        "t": np.zeros((2, 1), np.float32),
    }
    terms = (Term("a", 1.0), Term("b", 1.0), Term("a", -1.0))
    assert (run(Combine("t", terms, 0), arrays) == 1.0).all()  # 2048 + 1 is 2048 in half precision


@both
def test_one_double_slot_makes_the_sum_double(run):
    arrays = {"a": np.full((1, 1), 1.0), "b": np.full((1, 1), 2.0**-40, np.float32), "t": np.zeros((1, 1))}
    total = run(Combine("t", (Term("a", 1.0), Term("b", 1.0)), 0), arrays)
    assert total[0, 0] == 1.0 + 2.0**-40


@both
def test_the_target_may_be_a_term(run):
    arrays = {"x": noise(4, 2), "e": noise(4, 2, seed=1)}
    total = run(Combine("x", (Term("e", 2.0), Term("x", 0.5)), 0), arrays)
    assert np.abs(total - (2.0 * arrays["e"] + 0.5 * arrays["x"])).max() <= 1e-6


@both
def test_the_target_may_be_half_of_a_term(run):
    arrays = {"x": noise(2, 3)}
    total = run(Combine("x", (Term("x", 1.0, half="second"),), 0, copies=2), arrays)
    assert (total == np.concatenate([arrays["x"][1:]] * 2)).all()


@both
def test_holding_is_exact_and_a_second_run_sees_new_values(run):
    arrays = {"x": noise(2, 3), "t": np.full((2, 3), np.nan, np.float32)}
    assert (run(Combine("t", (Term("x", 1.0),), 0), arrays) == arrays["x"]).all()
    buffers = {name: array.copy() for name, array in arrays.items()}
    call = bind_numpy_combine(Combine("t", (Term("x", 2.0),), 0), buffers, 1.0)
    call()
    buffers["x"][...] = 3.0
    call()
    assert (buffers["t"] == 6.0).all()


def test_bfloat16_slots_in_torch():
    buffers = {"x": torch.tensor([[1.0, 256.0]], dtype=torch.bfloat16), "t": torch.zeros(1, 2)}
    bind_torch_combine(Combine("t", (Term("x", 1.0 / 3.0),), 0), buffers, 1.0)()
    assert (buffers["t"] - torch.tensor([[1 / 3, 256 / 3]])).abs().max() < 1e-5


@both
def test_shapes_that_do_not_fit_are_refused(run):
    arrays = {"x": noise(2, 3), "y": noise(2, 4), "t": noise(2, 3)}
    with pytest.raises(InputError, match=r"step 5 adds shapes \(2, 3\) and \(2, 4\) \(slot y\)"):
        run(Combine("t", (Term("x", 1.0), Term("y", 1.0)), 5), arrays)
    with pytest.raises(InputError, match=r"gives shape \(4, 3\), but the slot has \(2, 3\)"):
        run(Combine("t", (Term("x", 1.0),), 5, copies=2), arrays)
    with pytest.raises(InputError, match="has no terms"):
        run(Combine("t", (), 5), arrays)
