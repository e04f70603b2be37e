"""A file matches its record or is refused, and a large file is hashed again only after it changed."""

from __future__ import annotations

import os
import time

import pytest

from dipgo_deploy.core import digests
from dipgo_deploy.core.disk import write_atomic
from dipgo_deploy.core.errors import InputError


def test_digests_tell_size_from_content(tmp_path):
    path = tmp_path / "a" / "b.bin"
    write_atomic(path, b"hello")
    (record,) = digests.records_of(tmp_path)
    assert (record.path, record.bytes) == ("a/b.bin", 5)
    assert record.sha256 == "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    digests.check_digest(path, record)
    path.write_bytes(b"hellO")
    digests.check_digest(path, record, whole=False)
    with pytest.raises(InputError, match="differs from its recorded sha256 2cf24dba5fb0"):
        digests.check_digest(path, record)
    path.write_bytes(b"hell")
    with pytest.raises(InputError, match="has 4 bytes, recorded are 5: re-export"):
        digests.check_digest(path, record, whole=False)
    path.unlink()
    with pytest.raises(InputError, match="is missing: re-export"):
        digests.check_digest(path, record)
    path.symlink_to(tmp_path)
    with pytest.raises(InputError, match="is not a regular file"):
        digests.check_digest(path, record)


def test_a_link_to_a_file_is_checked_like_the_file(tmp_path):
    write_atomic(tmp_path / "own" / "file", b"hello")
    (record,) = digests.records_of(tmp_path / "own")
    (tmp_path / "link").symlink_to("own/file")
    digests.check_digest(tmp_path / "link", record)
    (tmp_path / "other").write_bytes(b"hellO")
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("other")
    with pytest.raises(InputError, match="differs from its recorded sha256"):
        digests.check_digest(tmp_path / "link", record)


def test_a_digest_is_remembered_until_the_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPGO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_SETTLED_NS", 0)
    path = tmp_path / "large"
    path.write_bytes(b"hello")
    hashed = []
    sha256_of = digests.sha256_of
    monkeypatch.setattr(digests, "sha256_of", lambda file: hashed.append(file) or sha256_of(file))
    first = digests.remembered_sha256(path)
    assert digests.remembered_sha256(path) == first == sha256_of(path) and len(hashed) == 1
    before = path.stat()
    time.sleep(0.02)
    with path.open("r+b") as stream:  # The same inode and size. Even the time of the last write is put back.
        stream.write(b"hellO")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert digests.remembered_sha256(path) == sha256_of(path) != first and len(hashed) == 2
    (note,) = (tmp_path / "cache" / "digests").iterdir()
    note.write_text("[]")
    assert digests.remembered_sha256(path) == sha256_of(path)


def test_a_file_that_changed_this_moment_is_not_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPGO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "large").write_bytes(b"hello")
    digests.remembered_sha256(tmp_path / "large")
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "cache").touch()
    monkeypatch.setenv("DIPGO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_SETTLED_NS", 0)
    assert digests.remembered_sha256(tmp_path / "cache") == digests.sha256_of(tmp_path / "cache")
