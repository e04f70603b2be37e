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
    with pytest.raises(
        InputError, match="link is a link, and nothing is written through links: replace it by a copy of .*own"
    ):
        disk.path_inside(tmp_path, "link/file", links=False)


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/../../b", "a\\b", "", ".", "a\0b"])
def test_a_document_names_no_path_outside_its_folder(tmp_path, name):
    with pytest.raises(InputError, match="is not a path inside .*: the files were tampered with"):
        disk.path_inside(tmp_path, name)


def test_a_missing_file_is_told_from_a_broken_link_and_a_loop(tmp_path):
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    assert disk.missing_text(tmp_path / "absent") == "is missing"
    assert disk.missing_text(tmp_path) == "is not a regular file"
    assert disk.missing_text(tmp_path / "broken").startswith("is a link that leads to ")
    assert disk.missing_text(tmp_path / "broken").endswith("nowhere, which does not exist")
    assert disk.missing_text(tmp_path / "loop") == "is a link that leads back to itself"
    assert disk.missing_text(tmp_path / "broken" / "file").startswith("is behind the link ")


def test_a_copied_folder_holds_no_links(tmp_path):
    shared = tmp_path / "shared"
    (shared / "deep").mkdir(parents=True)
    (shared / "deep" / "file").write_text("content")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "part").symlink_to("../shared")
    (tmp_path / "own" / "file").symlink_to("../shared/deep/file")
    disk.copy_folder(tmp_path / "own", tmp_path / "copy")
    assert (tmp_path / "copy" / "part" / "deep" / "file").read_text() == "content"
    assert not any(path.is_symlink() for path in (tmp_path / "copy").rglob("*"))
    (shared / "up").symlink_to("../own")
    with pytest.raises(InputError, match="up is a link that leads back to a folder around it: remove it"):
        disk.copy_folder(tmp_path / "own", tmp_path / "again")
    (shared / "up").unlink()
    (shared / "up").symlink_to("gone")
    with pytest.raises(InputError, match=r"up is a link that leads to .*gone, which does not exist: restore"):
        disk.copy_folder(tmp_path / "own", tmp_path / "again")


def test_binary_files_are_no_json(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\x89PNG\r\n\xff")
    with pytest.raises(InputError, match="x.json is a PNG picture, expected a JSON file: check the path"):
        disk.read_json(tmp_path / "x.json")


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
