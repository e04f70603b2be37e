"""Whether an export may replace an older bundle: only one that the same inputs would have made.

The contract is compared before the trace, the program before anything is written, and all files at the end.
"""

from __future__ import annotations

from pathlib import Path

from dipgo_deploy.bundle.bundle import Bundle
from dipgo_deploy.bundle.files import is_prose
from dipgo_deploy.bundle.load import load_bundle
from dipgo_deploy.core.bundle import BUNDLE_FILE, BundleManifest
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.program import Program
from dipgo_deploy.core.schedule import Schedule

__all__ = ["check_contract_of", "check_files_of", "check_program_of", "older_bundle"]


def older_bundle(out: Path) -> Bundle | None:
    """The bundle at ``out``, None if there is none. Raises InputError for a bundle that cannot be compared."""
    if not (out / BUNDLE_FILE).is_file():
        return None
    try:
        return load_bundle(out, trust_weights=True)
    except InputError:
        raise InputError(
            f"the bundle at {out} is damaged or was edited, so that it cannot be compared with this export: choose "
            "another folder, or pass replace=True to replace it"
        ) from None


def check_contract_of(older: Bundle, contract: Contract) -> None:
    """Raise InputError if the older bundle has another contract."""
    for name in (
        "model_class",
        "model_digest",
        "dtype",
        "sampler",
        "guidance",
        "latent_shape",
        "batch",
        "height",
        "width",
    ):
        if getattr(older.contract, name) != getattr(contract, name):
            raise _refusal(older, f"another {name.replace('_', ' ')}")


def check_program_of(older: Bundle, schedule: Schedule, program: Program) -> None:
    """Raise InputError if the older bundle has another schedule, layout or set of graphs."""
    if older.program.layout != program.layout:
        raise _refusal(older, f"layout {older.program.layout}")
    if older.schedule != schedule:
        raise _refusal(older, "another schedule")
    if older.program != program:
        raise _refusal(older, "another program")


def check_files_of(older: Bundle, manifest: BundleManifest) -> None:
    """Raise InputError if the older bundle has other files, such as another VAE. Files of engines do not count."""
    digests = older.manifest.digests
    for path, digest in manifest.digests.items():
        if not is_prose(path) and "/" in path and digests.get(path) != digest:
            raise _refusal(older, f"another {path}")


def _refusal(older: Bundle, difference: str) -> InputError:
    return InputError(
        f"{older.folder} is a bundle with {difference}, made from other inputs than these: choose another folder, or "
        "pass replace=True to replace it"
    )
