"""Bundle manifest: which files a bundle consists of and how to know that they are unharmed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dipgo_deploy.core.contract import Contract

__all__ = ["BUNDLE_FILE", "BundleManifest", "FileRecord"]

BUNDLE_FILE = "bundle.json"
"""Name of the manifest. It is written last: a folder without it is no bundle."""


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and sha256 of one file, by its path relative to the bundle with forward slashes."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class BundleManifest:
    """Contract, file records and where things are.

    ``denoiser`` is the folder of the denoiser (``unet`` or ``transformer``); ``graphs`` maps a graph's name to its ONNX
    file; ``weights`` maps an expert to its weights file; ``versions`` records the tools.
    """

    contract: Contract
    denoiser: str
    files: tuple[FileRecord, ...]
    graphs: Mapping[str, str]
    weights: Mapping[str, str]
    model_weight_bytes: int
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def digests(self) -> Mapping[str, str]:
        """The sha256 of every file by its path."""
        return {record.path: record.sha256 for record in self.files}
