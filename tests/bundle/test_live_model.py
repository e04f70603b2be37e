"""A bundle of a live module with behaviour of its own: the module is asked for and compared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dipgo_deploy.bundle import export, load_bundle
from dipgo_deploy.cli import main
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.graphs import trace
from dipgo_deploy.pipeline import DeployedDenoiser
from dipgo_deploy.runtime import RunOptions, open_session
from dipgo_deploy.verify import VerifyOptions, verify_bundle
from tests.models.families import tiny
from tests.runtime.bundles import scheduled


def changed():
    """A transformer with a hook, as a user has it in memory."""
    model = tiny("dit")
    model.module.transformer_blocks[1].register_forward_hook(lambda module, args, output: output * 2)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """Bundles of the plain module and of the changed one, exported in this order."""
    home = tmp_path_factory.mktemp("live")
    models = {"plain": tiny("dit"), "changed": changed()}
    return tuple(export(model, scheduled(model, (1, 0)), home / name) for name, model in models.items())


def test_neither_gets_the_trace_of_the_other(folders: tuple[Path, Path]) -> None:
    plain, live = tiny("dit"), changed()
    assert trace(plain).folder != trace(live).folder
    for model, folder in zip((plain, live), folders, strict=True):
        report = verify_bundle(load_bundle(folder, model=model), VerifyOptions(images=1))
        assert report.passed, report.failure


def test_the_module_is_asked_for_wherever_it_would_run(folders: tuple[Path, Path], capsys) -> None:
    bundle = load_bundle(folders[1])
    says = "made from a live DiTTransformer2DModel with behaviour of its own .*: pass that model as own_model"
    with pytest.raises(InputError, match=says):
        verify_bundle(bundle)
    with pytest.raises(InputError, match=says):
        open_session(bundle, 1, RunOptions("torch"))
    with pytest.raises(InputError, match=says):
        DeployedDenoiser.from_bundle(bundle, fallback=True)
    open_session(bundle, 1)
    DeployedDenoiser.from_bundle(bundle)
    assert DeployedDenoiser.from_bundle(load_bundle(folders[1], model=changed()), fallback=True) is not None
    assert main.run(["verify", str(folders[1])]) == 3
    assert "pass that model as --model" in capsys.readouterr().err


def test_another_behaviour_is_refused(folders: tuple[Path, Path]) -> None:
    for model, folder in ((tiny("dit"), folders[1]), (changed(), folders[0])):
        with pytest.raises(InputError, match="DiTTransformer2DModel is not the model that .* was traced from"):
            verify_bundle(load_bundle(folder, model=model))


def test_weights_come_from_the_bundle_and_behaviour_from_the_module(folders: tuple[Path, Path]) -> None:
    model = changed()
    with torch.no_grad():
        model.module.proj_out_2.bias.add_(1.0)
    assert load_bundle(folders[1], model=model).live_model.digest == changed().digest


def test_a_module_that_is_changed_after_its_export_no_longer_fits(folders: tuple[Path, Path]) -> None:
    model = tiny("dit")
    bundle = load_bundle(folders[0], model=model)
    assert bundle.live_model.module is model.module
    model.module.transformer_blocks[0].only_cross_attention = True
    with pytest.raises(InputError, match="the model in .* is .*, its contract is for"):
        verify_bundle(bundle, VerifyOptions(images=1))


def test_a_process_that_patches_the_class_is_told_so(folders: tuple[Path, Path], monkeypatch) -> None:
    from diffusers.models.attention import BasicTransformerBlock as Block

    forward = Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, *args, **kwargs: forward(self, *args, **kwargs) * 2)
    with pytest.raises(InputError, match=r"something else in this process \(BasicTransformerBlock.forward\)"):
        verify_bundle(load_bundle(folders[0]))


def test_a_module_that_answers_differently_each_time_is_refused_before_the_export() -> None:
    model = tiny("dit")
    model.module.register_forward_hook(lambda module, args, output: (output[0] + torch.rand_like(output[0]),))
    with pytest.raises(InputError, match=r"gives two results for the same inputs \(_forward_hooks\)"):
        trace(model)
