from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dipgo_deploy.core.files import load_schedule
from dipgo_deploy.graphs.cached_blocks import cached_blocks


def test_the_blocks_of_a_schedule_are_found_in_the_cache(bundle_folder: Path, traced, tmp_path, monkeypatch) -> None:
    schedule = load_schedule(bundle_folder / "schedule.json")
    assert cached_blocks(schedule) == traced("digits-unet", "stage").blocks
    contract = schedule.contract
    for other in (replace(contract, model_digest="0" * 64), replace(contract, latent_shape=(1, 32, 32))):
        assert cached_blocks(replace(schedule, contract=other)) is None
    monkeypatch.setenv("DIPGO_CACHE", str(tmp_path))
    assert cached_blocks(schedule) is None
    damaged = tmp_path / "traces" / f"{contract.model_class}-0"
    damaged.mkdir(parents=True)
    (damaged / "blocks.json").write_text("{")
    assert cached_blocks(schedule) is None
