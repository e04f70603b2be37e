from __future__ import annotations

import re

import pytest

from dipgo_deploy.trt.driver import DRIVER_VARIABLE, CudaDriver, Device, devices, probe_cuda
from tests.trt.fake_driver import compiled_driver, fake_driver


def test_devices_are_described_and_the_cuda_version_is_read():
    driver_state = probe_cuda(lambda _: fake_driver(devices=2))
    gpus = tuple(Device(index, f"GPU {index}", (8, 9), 24 << 30) for index in range(2))
    assert driver_state == CudaDriver(gpus, "13.2", "")
    assert gpus[1].gpu == "sm89"


def test_a_device_without_a_name_still_counts():
    assert probe_cuda(lambda _: fake_driver(name_code=1)).devices[0].name == "device 0"


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (fake_driver(init=100), r"cuInit returned 100 \(no CUDA device\)"),
        (fake_driver(init=12345), r"cuInit returned 12345"),
        (fake_driver(count_code=3), r"cuDeviceGetCount returned 3"),
        (fake_driver(devices=0), r"0 devices"),
    ],
)
def test_a_driver_without_a_usable_device_says_why(driver, reason):
    driver_state = probe_cuda(lambda _: driver)
    assert driver_state.devices == ()
    assert re.search(reason, driver_state.reason)


def test_a_missing_driver_library_is_reported_and_raises_nothing():
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    assert "no NVIDIA driver is installed" in probe_cuda(missing).reason


def test_another_library_is_reported_and_raises_nothing():
    assert "is not a CUDA driver" in probe_cuda(lambda _: object()).reason


def test_the_real_probe_answers_on_any_machine():
    driver_state = probe_cuda()
    assert bool(driver_state.devices) != bool(driver_state.reason)


def test_an_environment_variable_replaces_the_driver_library(tmp_path, monkeypatch):
    monkeypatch.setenv(DRIVER_VARIABLE, str(compiled_driver(tmp_path, devices=1)))
    assert devices() == (Device(0, "Fake GPU", (8, 9), 24 << 30),)
