"""Bundle manifest: the files of a bundle, with sizes and digests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dipgo_deploy.core.contract import Contract

__all__ = ["BUNDLE_FILE", "BundleManifest", "FileRecord"]

BUNDLE_FILE = "bundle.json"
"""Name of the manifest. The manifest is written last, so a folder without it is not a bundle."""


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and sha256 of one file, by its path relative to the bundle with forward slashes."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class BundleManifest:
    """Contract, file records and the location of every part.

    Attributes:
        contract: the contract of schedule and program.
        denoiser: the folder of the denoiser, ``unet`` or ``transformer``.
        files: a record of every file except the manifest.
        graphs: the ONNX file of each graph by its name.
        weights: the weights file of each expert.
        model_weight_bytes: bytes of the original model's weights.
        versions: versions of the tools that wrote the bundle.
        behaviour: what the exported module did besides its class, config and weights, in short. Empty for a module as
            its class makes it.
    """

    contract: Contract
    denoiser: str
    files: tuple[FileRecord, ...]
    graphs: Mapping[str, str]
    weights: Mapping[str, str]
    model_weight_bytes: int
    versions: Mapping[str, str] = field(default_factory=dict)
    behaviour: str = ""

    @property
    def digests(self) -> Mapping[str, str]:
        """The sha256 of every file by its path."""
        return {record.path: record.sha256 for record in self.files}
