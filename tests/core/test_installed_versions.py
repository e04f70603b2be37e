from __future__ import annotations

from dipgo_deploy.core.contract import installed_versions


def test_packages_that_are_not_installed_are_left_out():
    assert list(installed_versions(["numpy", "no-such-distribution"])) == ["numpy"]
