"""Files are written whole, stay inside their folder and are known by their digest."""

from __future__ import annotations

import pytest

from dipgo_deploy.core import disk
from dipgo_deploy.core.errors import InputError


def test_where_something_is_written_no_link_is_followed(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "link").symlink_to("own")
    assert disk.path_inside(tmp_path, "link/file") == tmp_path / "link" / "file"
    assert disk.path_inside(tmp_path, "own/file", links=False) == tmp_path / "own" / "file"
    with pytest.raises(InputError, match="link is a link, a folder or file of the bundle's own is wanted there"):
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
    with pytest.raises(InputError, match="has 4 bytes, 5 are recorded"):
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
