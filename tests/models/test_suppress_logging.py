from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module

import pytest

from dipgo_deploy.models.suppress_logging import suppress_diffusers_logging, suppress_transformers_logging


@pytest.mark.parametrize(
    ("library", "quiet"), [("diffusers", suppress_diffusers_logging), ("transformers", suppress_transformers_logging)]
)
def test_a_library_is_quiet_inside_and_as_before_after_it(
    library: str, quiet: Callable[[], AbstractContextManager[None]]
) -> None:
    pytest.importorskip(library, reason=f"{library} is not installed")
    logging = import_module(f"{library}.utils.logging")
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    try:
        with pytest.raises(ValueError, match="inside"), quiet():
            assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.ERROR, False)
            raise ValueError("inside")
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.INFO, True)
    finally:
        logging.set_verbosity(before[0])
        if not before[1]:
            logging.disable_progress_bar()
