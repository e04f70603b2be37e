from __future__ import annotations

from pathlib import Path

from dipgo_deploy.bundle.manifest import add_records, drop_records
from dipgo_deploy.core.digests import sha256_of
from dipgo_deploy.core.files import load_manifest


def test_files_that_are_added_get_their_records_and_engines_that_went_lose_them(bundle_copy: Path) -> None:
    before = load_manifest(bundle_copy / "bundle.json").files
    engine = bundle_copy / "unet" / "engines" / "rtx" / "g.engine"
    engine.parent.mkdir(parents=True)
    engine.write_bytes(b"engine")
    add_records(bundle_copy, [engine])
    records = {record.path: record for record in load_manifest(bundle_copy / "bundle.json").files}
    assert len(records) == len(before) + 1
    assert records["unet/engines/rtx/g.engine"].sha256 == sha256_of(engine)
    engine.unlink()
    add_records(bundle_copy, [])
    assert load_manifest(bundle_copy / "bundle.json").files == before


def test_nothing_new_leaves_the_manifest_as_it_is(bundle_copy: Path) -> None:
    path = bundle_copy / "bundle.json"
    stamp = path.stat().st_mtime_ns
    add_records(bundle_copy, [bundle_copy / "schedule.json"])
    assert path.stat().st_mtime_ns == stamp


def test_records_are_dropped_by_file_and_by_folder(bundle_copy: Path) -> None:
    drop_records(bundle_copy, [bundle_copy / "scheduler", bundle_copy / "README.md", bundle_copy / "sched"])
    records = {record.path for record in load_manifest(bundle_copy / "bundle.json").files}
    assert "README.md" not in records and not [path for path in records if path.startswith("scheduler/")]
    assert "schedule.json" in records
