from __future__ import annotations

import json

from dipgo_deploy import __version__
from dipgo_deploy.runtime.environment import environment


def test_environment_is_plain_data_with_the_versions():
    data = json.loads(json.dumps(environment()))
    assert data["dipgo_deploy"] == __version__
    assert data["packages"]["numpy"]
    assert data["cores"] >= data["usable_cores"] >= 1
