from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from dipgo_deploy.core.errors import MissingError, UsageError
from dipgo_deploy.trt.driver import CudaDriver, Device
from dipgo_deploy.trt.target import Target, is_installed, load_target

NONE = CudaDriver((), None, "cuInit returned 100 (no CUDA device)")
GPU = CudaDriver((Device(0, "NVIDIA H200", (9, 0), 1 << 37),), "13.0", "")
rtx_module = SimpleNamespace(__version__="1.7", ComputeCapability=SimpleNamespace(SM89=4, SM75=1, NONE=0, SM120=6))


@pytest.fixture
def modules(monkeypatch):
    """Install or remove the two modules."""

    def install(**libraries):
        for name in ("tensorrt", "tensorrt_rtx"):
            monkeypatch.setitem(sys.modules, name, libraries.get(name))

    return install


def test_tensorrt_is_taken_where_both_can_be_used(modules):
    modules(tensorrt=SimpleNamespace(__version__="11.4"), tensorrt_rtx=rtx_module)
    assert load_target(probe=lambda: GPU).name == "tensorrt"
    assert load_target(probe=lambda: NONE).name == "rtx"


@pytest.mark.parametrize(
    ("name", "purpose", "words"),
    [
        ("tensorrt", "build", "builds only on an NVIDIA GPU .*cuInit returned 100.*or choose target rtx"),
        ("tensorrt", "run", "runs only on an NVIDIA GPU .*run on a machine with a GPU"),
        ("rtx", "run", "runs only on an NVIDIA GPU"),
        (None, "run", "tensorrt runs only .*; target rtx runs only"),
    ],
)
def test_without_a_gpu_the_refusal_names_what_to_do(modules, name, purpose, words):
    modules(tensorrt=SimpleNamespace(__version__="11.4"), tensorrt_rtx=rtx_module)
    with pytest.raises(MissingError, match=words):
        load_target(name, purpose, lambda: NONE)


@pytest.mark.parametrize("name", ["tensorrt", "rtx"])
def test_a_missing_module_is_refused_with_its_install_line(monkeypatch, name):
    monkeypatch.setattr("dipgo_deploy.trt.target.is_installed", lambda _: False)
    with pytest.raises(MissingError, match=rf"is not installed: pip install 'dipgo-deploy\[{name}\]'"):
        load_target(name, probe=lambda: GPU)


def test_a_module_that_does_not_load_is_a_missing_one(modules, monkeypatch):
    modules()  # None in sys.modules makes the import fail
    monkeypatch.setattr("dipgo_deploy.trt.target.is_installed", lambda _: True)
    with pytest.raises(MissingError, match="tensorrt_rtx cannot be imported"):
        load_target("rtx", probe=lambda: NONE)


def test_an_unknown_target_is_refused():
    with pytest.raises(UsageError, match="choose tensorrt or rtx"):
        load_target("tensorflow")


def test_rtx_builds_for_the_architectures_it_knows():
    target = Target("rtx", rtx_module, "1.7", NONE)
    assert target.architectures == ("sm75", "sm89", "sm120")
    assert target.check_gpus(["sm120", "sm89", "sm120"]) == ("sm120", "sm89")
    with pytest.raises(UsageError, match="sm75, sm89, sm120, not for sm90: choose among these"):
        target.check_gpus(["sm90"])
    with pytest.raises(MissingError, match="no GPU to build for .*: set gpus to some of sm75, sm89, sm120"):
        target.check_gpus([])


def test_tensorrt_builds_for_the_gpu_that_is_there():
    target = Target("tensorrt", SimpleNamespace(), "11.4", GPU)
    assert target.check_gpus([]) == ("sm90",)
    with pytest.raises(UsageError, match="builds for sm90, not for sm89"):
        target.check_gpus(["sm89"])


def test_builder_configs_are_told_only_where_there_is_a_choice():
    told = []
    config = SimpleNamespace(set_compute_capability=lambda kind, index: told.append((kind, index)))
    Target("tensorrt", None, "11.4", GPU).choose_gpus(config, ("sm90",))
    assert told == []
    Target("rtx", rtx_module, "1.7", NONE).choose_gpus(config, ("sm89", "sm120"))
    assert told == [(4, 0), (6, 1)] and config.num_compute_capabilities == 2


def test_installed_modules_are_found_without_importing_them():
    assert is_installed("json")
    assert not is_installed("no_such_module_anywhere")
