"""A denoiser saved by itself: a bundle again, without the text encoders and the VAE around it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from dipgo_deploy.core.bundle import BUNDLE_FILE
from dipgo_deploy.core.disk import check_target, path_inside, records_of, write_atomic
from dipgo_deploy.core.engine import ENGINES_FOLDER
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.files import save_manifest
from dipgo_deploy.core.staging import staged
from dipgo_deploy.runtime.loaded import LoadedBundle

__all__ = ["save_denoiser"]

_INDEX = "model_index.json"


def save_denoiser(bundle: LoadedBundle, folder: Path) -> None:
    """Copy the documents, graphs and weights of a bundle to ``folder``, the manifest last.

    ``config.json`` beside it is the model's, as diffusers has it. An older bundle there stays until the new one is
    whole, and engines that are recorded but gone are left out. Raises InputError where the folder holds something else
    or cannot be written.
    """
    check_target(folder, folder=True)
    if folder.exists() and any(folder.iterdir()) and not (folder / BUNDLE_FILE).is_file():
        raise InputError(f"{folder} exists and is no bundle: choose another folder")
    if folder.exists() and folder.samefile(bundle.folder):
        return
    try:
        with staged(folder) as temporary:
            _write(bundle, temporary)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror or error}): choose another place") from None


def _write(bundle: LoadedBundle, folder: Path) -> None:
    manifest = bundle.manifest
    for path in (record.path for record in manifest.files if record.path != _INDEX):
        absent_engine = f"/{ENGINES_FOLDER}/" in path and not (bundle.folder / path).exists()
        if ("/" not in path or path.startswith(f"{manifest.denoiser}/")) and not absent_engine:
            path_inside(folder, path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path_inside(bundle.folder, path), folder / path)
    shutil.copyfile(bundle.denoiser / "config.json", folder / "config.json")
    index = {"_class_name": "DiffusionPipeline", manifest.denoiser: ["diffusers", manifest.contract.model_class]}
    write_atomic(folder / _INDEX, json.dumps(index, indent=2) + "\n")
    save_manifest(folder / BUNDLE_FILE, replace(manifest, files=records_of(folder)))
