"""A folder appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from dipgo_deploy.core.disk import staged
from dipgo_deploy.core.errors import InputError


def test_what_is_staged_stands_at_the_end_alone(tmp_path: Path) -> None:
    out = tmp_path / "new" / "deep" / "bundle"
    for content in ("first", "second"):
        with staged(out) as folder:
            (folder / "file").write_text(content)
            assert folder.parent == out.parent and folder.name.startswith(".bundle.new.")
        assert (out / "file").read_text() == content
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]


def test_after_an_exception_nothing_is_left_but_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "old" / "bundle").mkdir(parents=True)
    for out in (tmp_path / "old" / "bundle", tmp_path / "old" / "new" / "deep" / "bundle", tmp_path / "x"):
        with pytest.raises(RuntimeError), staged(out) as folder:
            (folder / "file").write_text("half")
            raise RuntimeError
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "old", tmp_path / "old" / "bundle"]


def test_a_folder_that_another_uses_by_now_stays(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), staged(tmp_path / "new" / "one"):
        (tmp_path / "new" / "other").mkdir()
        raise RuntimeError
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["other"]


def test_where_nothing_can_be_written_the_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "bundle", tmp_path / "new" / ("long" * 63)):
        with pytest.raises(InputError, match=r"cannot be written \(.+\): choose another place"), staged(out):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
