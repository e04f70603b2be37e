"""Files and folders are written whole or not at all, stay inside their folder and match their digest."""

from __future__ import annotations

from pathlib import Path

import pytest

from dipgo_deploy.core import disk
from dipgo_deploy.core.disk import staged
from dipgo_deploy.core.errors import InputError


def test_where_something_is_written_no_link_is_followed(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "link").symlink_to("own")
    assert disk.path_inside(tmp_path, "link/file") == tmp_path / "link" / "file"
    assert disk.path_inside(tmp_path, "own/file", links=False) == tmp_path / "own" / "file"
    with pytest.raises(InputError, match="link is a link, expected a file or folder of the bundle: remove it"):
        disk.path_inside(tmp_path, "link/file", links=False)


def test_digests_tell_size_from_content(tmp_path):
    path = tmp_path / "a" / "b.bin"
    disk.write_atomic(path, b"hello")
    (record,) = disk.records_of(tmp_path)
    assert (record.path, record.bytes) == ("a/b.bin", 5)
    assert record.sha256 == "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    disk.check_digest(path, record)
    path.write_bytes(b"hellO")
    disk.check_digest(path, record, whole=False)
    with pytest.raises(InputError, match="differs from its recorded sha256 2cf24dba5fb0"):
        disk.check_digest(path, record)
    path.write_bytes(b"hell")
    with pytest.raises(InputError, match="has 4 bytes, recorded are 5: re-export"):
        disk.check_digest(path, record, whole=False)
    path.unlink()
    path.symlink_to(tmp_path)
    with pytest.raises(InputError, match="is missing or not a regular file"):
        disk.check_digest(path, record)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    disk.write_atomic(path, "old")
    monkeypatch.setattr(disk.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(InputError, match=r"cannot be written \(disk full\)"):
        disk.write_atomic(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_staged_folder_is_complete_at_the_end_and_alone(tmp_path: Path) -> None:
    out = tmp_path / "new" / "deep" / "bundle"
    for content in ("first", "second"):
        with staged(out) as folder:
            (folder / "file").write_text(content)
            assert folder.parent == out.parent and folder.name.startswith(".bundle.new.")
        assert (out / "file").read_text() == content
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]


def test_after_an_exception_only_older_folders_are_left(tmp_path: Path) -> None:
    (tmp_path / "old" / "bundle").mkdir(parents=True)
    for out in (tmp_path / "old" / "bundle", tmp_path / "old" / "new" / "deep" / "bundle", tmp_path / "x"):
        with pytest.raises(RuntimeError), staged(out) as folder:
            (folder / "file").write_text("half")
            raise RuntimeError
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "old", tmp_path / "old" / "bundle"]


def test_a_new_folder_that_another_process_uses_stays(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), staged(tmp_path / "new" / "bundle"):
        (tmp_path / "new" / "other").mkdir()
        raise RuntimeError
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["other"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "bundle", tmp_path / "new" / ("long" * 63)):
        with pytest.raises(InputError, match=r"cannot be written \(.+\): choose another place"), staged(out):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("folder", [False, True])
def test_a_target_is_checked_before_long_work(tmp_path: Path, folder: bool) -> None:
    (tmp_path / "file").touch()
    disk.check_target(tmp_path / "new" / "deep" / "target", folder=folder)
    disk.check_target(tmp_path if folder else tmp_path / "file", folder=folder)
    other = tmp_path / "file" if folder else tmp_path
    with pytest.raises(InputError, match="expected a folder" if folder else "expected a file"):
        disk.check_target(other, folder=folder)
    with pytest.raises(InputError, match="cannot be written, because .*file is not a folder: choose another place"):
        disk.check_target(tmp_path / "file" / "target", folder=folder)


def test_traces_are_cached_in_the_users_cache_folder_by_default(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DIPGO_CACHE", str(tmp_path))
    assert disk.cache_folder() == tmp_path
    monkeypatch.delenv("DIPGO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert disk.cache_folder() == tmp_path / "dipgo-deploy"
