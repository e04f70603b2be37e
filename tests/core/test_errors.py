from __future__ import annotations

import pytest

from dipgo_deploy.core.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n one\ntwo"), "one"),
        (ValueError("one."), "one"),
        (ValueError(" \n"), "no reason given"),
        (StopIteration(), "no reason given"),
        (KeyError("unet.r"), "'unet.r' is missing"),
        (RuntimeError("Error(s) in loading:\n\tsize  mismatch\n\tmore"), "Error(s) in loading: size mismatch"),
        (
            RuntimeError(
                "Expected d >= 0 to be true, but got false.  (Could this error message be improved?  If so, please "
                "report an enhancement request to PyTorch.)"
            ),
            "Expected d >= 0 to be true, but got false",
        ),
        (OSError("bad file. Please open an issue: https://github.com/x/y/issues/new"), "bad file"),
        (RuntimeError("torch.cuda.OutOfMemoryError: too large"), "too large"),
        (ValueError("word " * 100), "word " * 59 + "…"),
    ],
)
def test_what_a_librarys_error_says(error: Exception, line: str) -> None:
    assert first_line(error) == line
