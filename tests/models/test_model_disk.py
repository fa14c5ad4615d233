import errno
import os
from pathlib import Path

import pytest

from diptych.core.errors import ModelError
from diptych.models.disk import explain_write_errors, folder_bytes, require_free_space
from diptych.models.resolution import resolve


def test_enough_room_is_no_error(tmp_path: Path) -> None:
    require_free_space(tmp_path, 0)
    with pytest.raises(ModelError, match=rf"no space left in {tmp_path}: 1000000000 GB needed, .* free$"):
        require_free_space(tmp_path, 10**18)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOSPC, "no space left in {}: 5 bytes needed, .* free; a quota"),
        (errno.EDQUOT, "no space left in {}"),
        (errno.EACCES, "cannot write to the model cache {}/absent: Permission denied; set DIPTYCH_CACHE"),
        (errno.EROFS, "cannot write to the model cache {}/absent: Read-only file system"),
    ],
)
def test_refused_writes_are_one_line(tmp_path: Path, number: int, text: str) -> None:
    with pytest.raises(ModelError, match=text.format(tmp_path)), explain_write_errors(tmp_path / "absent", 5):
        raise OSError(number, os.strerror(number))


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="broken"), explain_write_errors(tmp_path, 5):
        raise OSError(errno.EIO, "broken")


def test_a_cache_below_a_file_is_one_line(tmp_path: Path, tiny_gguf: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match=r"cannot write to the model cache .*file/cache: Not a directory"):
        resolve(str(tiny_gguf), cache=tmp_path / "file" / "cache")


def test_folders_are_measured_without_what_links_point_to(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(bytes(1000))
    assert folder_bytes(tmp_path) == 1000
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    assert 1000 < folder_bytes(tmp_path) < 2000
    assert folder_bytes(tmp_path / "absent") == 0
