"""``dipgo_deploy.search`` is a package and a verb, whichever was imported first."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

VERB_FIRST = "import dipgo_deploy; verb = dipgo_deploy.search; from dipgo_deploy.search import SearchOptions, search"
PACKAGE_FIRST = "from dipgo_deploy.search import SearchOptions, search; import dipgo_deploy; verb = dipgo_deploy.search"
SUBMODULE_FIRST = "import dipgo_deploy.search.candidate; " + PACKAGE_FIRST
STUB = """
import sys, types
run = types.ModuleType("run")
run.search = lambda *arguments, **options: (arguments, options)
sys.modules["dipgo_deploy.search.run"] = run  # the real module takes seconds to import
"""
CHECK = """
options = SearchOptions("random")
expected = (("model", "contract", options), {"blocks": None})
assert expected == verb("model", "contract", options) == dipgo_deploy.search("model", "contract", options)
assert search is run.search
assert dipgo_deploy.search.SearchOptions is SearchOptions and dipgo_deploy.search.search is search
print("both")
"""


@pytest.mark.parametrize("imports", [VERB_FIRST, PACKAGE_FIRST, SUBMODULE_FIRST])
def test_the_package_can_be_called_in_any_order_of_imports(imports: str) -> None:
    done = subprocess.run([sys.executable, "-c", STUB + imports + CHECK], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "both"), done.stderr


def test_options_are_imported_without_pytorch() -> None:
    code = "import sys; from dipgo_deploy.search import SearchOptions as O; O('dipgo'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_verb_has_the_signature_of_the_function() -> None:
    import dipgo_deploy
    from dipgo_deploy.search import search

    assert inspect.signature(dipgo_deploy.search) == inspect.signature(search)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = dipgo_deploy.search.nothing
