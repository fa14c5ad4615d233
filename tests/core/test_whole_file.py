"""A file is there as a whole or not at all."""

import os
from pathlib import Path

import pytest
from tests.small_disk import fill_up, small_disk

from diptych.core.whole_file import OWNER_ALONE, write_whole


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    before = os.umask(0o022)
    try:
        write_whole(path, b"old")
        assert path.stat().st_mode & 0o777 == 0o644
        with path.open("rb") as reader:
            write_whole(path, b"new", OWNER_ALONE)
            assert reader.read() == b"old", "who reads has one version"
    finally:
        os.umask(before)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_what_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=16k") as disk:
        write_whole(disk / "file", b"old")
        filler = fill_up(disk)
        with pytest.raises(OSError, match="No space left"):
            write_whole(disk / "file", bytes(100_000))
        assert (disk / "file").read_bytes() == b"old"
        assert set(disk.iterdir()) == {disk / "file", filler}
