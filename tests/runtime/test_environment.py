from __future__ import annotations

import json

from dipgo_deploy import __version__
from dipgo_deploy.runtime.environment import environment


def test_environment_is_plain_data_with_the_versions():
    found = json.loads(json.dumps(environment()))
    assert found["dipgo_deploy"] == __version__
    assert found["packages"]["numpy"]
    assert found["cores"] >= found["usable_cores"] >= 1
