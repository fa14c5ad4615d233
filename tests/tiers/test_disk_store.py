"""Real files: what is read is what was stored, or nothing; and the room that it takes is bounded."""

import mmap
import os
from pathlib import Path

import pytest
from tests.tiers.stored_blocks import (
    BLOCK_BYTES,
    FILE_BYTES,
    FINGERPRINT,
    KEY,
    content_of,
    files_at_most,
    files_in,
    hash_of,
)

from diptych.core.errors import TierError
from diptych.tiers.block_file import PAGE_BYTES
from diptych.tiers.clearing import clear_disk_kv
from diptych.tiers.disk_store import DiskSettings, DiskStore
from diptych.tiers.files import can_bypass_page_cache
from diptych.tiers.kv_key import is_kv_key, kv_key


class Holder:
    """A worker's hold on the folder, with buffers."""

    def __init__(self, root: Path, num_files: int = 100, num_sharers: int = 1, key: str = KEY) -> None:
        limit_bytes = num_files * FILE_BYTES
        self.store = DiskStore(
            DiskSettings(root=root, key=key, block_bytes=BLOCK_BYTES, limit_bytes=limit_bytes, num_sharers=num_sharers)
        )
        self.store.open()
        self._buffer = memoryview(mmap.mmap(-1, self.store.format.file_bytes))

    def write(self, *numbers: int) -> None:
        for number in numbers:
            self.store.format.payload(self._buffer)[:] = content_of(number)
            self.store.write(hash_of(number), self._buffer)

    def read(self, number: int) -> bytes | None:
        content = self.store.read(hash_of(number), self._buffer)
        return None if content is None else bytes(content)

    def has(self, *numbers: int) -> list[bool]:
        return [self.store.index.find(hash_of(number)) is not None for number in numbers]


def test_what_is_stored_comes_back_also_after_a_restart(tmp_path: Path) -> None:
    first = Holder(tmp_path / "kv")
    first.write(1, 2)
    assert first.read(1) == content_of(1)
    first.store.close()
    again = Holder(tmp_path / "kv")
    assert [again.read(number) for number in (1, 2, 3)] == [content_of(1), content_of(2), None]
    assert again.store.index.used_bytes == 2 * FILE_BYTES == sum(path.stat().st_size for path in files_in(tmp_path))
    assert again.store.index.num_leading([hash_of(2), hash_of(1), hash_of(3), hash_of(1)]) == 2


def test_files_are_for_this_user_alone(tmp_path: Path) -> None:
    Holder(tmp_path / "deep" / "kv").write(1)
    for path in (tmp_path / "deep").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:PAGE_BYTES],
        lambda _: b"",
        lambda data: data[:5] + bytes([data[5] ^ 1]) + data[6:],
        lambda data: data[:30] + bytes([data[30] ^ 64]) + data[31:],
        lambda data: data[: PAGE_BYTES + 3000] + bytes([data[PAGE_BYTES + 3000] ^ 8]) + data[PAGE_BYTES + 3001 :],
        lambda data: data[: 2 * PAGE_BYTES] + bytes(PAGE_BYTES),
        lambda data: bytes(len(data)),
    ],
    ids=["a byte short", "page alone", "empty", "magic", "header bit", "payload bit", "torn page", "zeros"],
)
def test_a_damaged_file_is_a_miss_and_removed(tmp_path: Path, damage: object) -> None:
    holder = Holder(tmp_path)
    holder.write(1, 2)
    (path,) = [path for path in files_in(tmp_path) if path.name == hash_of(1).hex()]
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert holder.read(1) is None
    assert not path.exists()
    assert holder.has(1, 2) == [False, True]
    assert holder.store.counts.num_corrupt == 1
    assert holder.store.index.used_bytes == FILE_BYTES
    holder.write(1)
    assert holder.read(1) == content_of(1)


def test_another_blocks_file_or_another_keys_is_a_miss(tmp_path: Path) -> None:
    holder = Holder(tmp_path)
    holder.write(1, 11)
    one, eleven = files_in(tmp_path)
    eleven.write_bytes(one.read_bytes())
    assert holder.read(11) is None
    other_key = kv_key(FINGERPRINT, {"model": "other"})
    other = Holder(tmp_path, key=other_key)
    assert other.has(1) == [False]
    other.write(1)
    foreign = next(path for path in files_in(tmp_path) if other_key in str(path))
    one.write_bytes(foreign.read_bytes())
    assert holder.read(1) is None


def test_a_file_that_is_gone_is_a_miss(tmp_path: Path) -> None:
    holder = Holder(tmp_path)
    holder.write(1)
    files_in(tmp_path)[0].unlink()
    assert holder.read(1) is None
    assert (holder.store.counts.num_missing, holder.store.index.used_bytes) == (1, 0)


def test_what_a_killed_writer_has_left_is_swept(tmp_path: Path) -> None:
    first = Holder(tmp_path)
    first.write(1, 2)
    files_in(tmp_path)[0].write_bytes(b"torn")
    scratch = tmp_path / KEY / "0" / "writing"
    scratch.write_bytes(b"half")
    first.store.close()
    again = Holder(tmp_path)
    assert not scratch.exists()
    assert again.has(1, 2) == [False, True]
    assert len(files_in(tmp_path)) == 1


def test_room_is_bounded_and_the_longest_unused_goes_first(tmp_path: Path) -> None:
    holder = Holder(tmp_path, num_files=3)
    holder.write(1, 2, 3)
    assert holder.read(1) is not None  # so it is not the oldest any more
    holder.write(4)
    assert holder.has(1, 2, 3, 4) == [True, False, True, True]
    assert len(files_in(tmp_path)) == 3
    holder.store.close()
    smaller = Holder(tmp_path, num_files=1)
    assert smaller.has(1, 3, 4) == [False, False, True]
    assert len(files_in(tmp_path)) == 1
    assert smaller.store.counts.num_evicted == 2


def test_less_room_than_a_block_takes_is_told(tmp_path: Path) -> None:
    with pytest.raises(TierError, match="raise --disk-kv-bytes"):
        Holder(tmp_path, num_files=0)


def test_workers_read_each_others_blocks_and_bound_their_own(tmp_path: Path) -> None:
    one, two = (Holder(tmp_path, num_files=2, num_sharers=2) for _ in range(2))
    one.write(1, 2)
    assert two.has(1) == [False]
    two.store.refresh()
    assert two.read(1) == content_of(1)
    two.write(1)  # is there already
    assert len(files_in(tmp_path)) == 2
    two.write(3, 4)
    one.write(5)
    two.store.refresh()
    assert two.has(1, 2, 3, 4, 5) == [True, False, True, True, True], "1 was used by the other worker since"
    assert len(files_in(tmp_path)) == 4
    assert two.read(2) is None


def test_what_a_larger_server_has_left_is_shared_out(tmp_path: Path) -> None:
    former = [Holder(tmp_path, num_files=5, num_sharers=3) for _ in range(3)]
    for number, holder in enumerate(former):
        holder.write(*range(10 * number, 10 * number + 5))
    other_key = kv_key(FINGERPRINT, {"model": "other"})
    foreign = Holder(tmp_path, num_files=5, key=other_key)
    foreign.write(*range(5))
    for holder in (*former, foreign):
        holder.store.close()
    alone = Holder(tmp_path, num_files=4)
    assert len(files_in(tmp_path)) == 4, "of all that nobody else uses"
    assert alone.store.index.used_bytes == 4 * FILE_BYTES


def test_what_another_server_uses_stays(tmp_path: Path) -> None:
    other = Holder(tmp_path, num_files=5, key=kv_key(FINGERPRINT, {"model": "other"}))
    other.write(1, 2, 3)
    Holder(tmp_path, num_files=1).write(4, 5)
    assert [other.read(number) for number in (1, 2, 3)] == [content_of(1), content_of(2), content_of(3)]


def test_nothing_but_its_own_is_touched(tmp_path: Path) -> None:
    strange = tmp_path / "photos" / "0" / "ab"
    strange.mkdir(parents=True)
    photo = strange / hash_of(1).hex()
    photo.write_bytes(b"x" * FILE_BYTES)
    holder = Holder(tmp_path, num_files=1)
    holder.write(1, 2)
    holder.store.close()
    cleared = clear_disk_kv(tmp_path)
    assert (cleared.num_files, cleared.num_bytes, cleared.num_in_use) == (1, FILE_BYTES, 0)
    assert photo.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_clearing_leaves_what_is_in_use(tmp_path: Path) -> None:
    holder = Holder(tmp_path)
    holder.write(1)
    assert clear_disk_kv(tmp_path).num_in_use == 1
    assert holder.read(1) == content_of(1)
    assert clear_disk_kv(tmp_path / "absent").num_files == 0


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(TierError, match="symbolic link"):
        Holder(tmp_path / "link")
    holder = Holder(tmp_path / "real")
    holder.write(1)
    (path,) = files_in(tmp_path / "real")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        holder.read(1)
    secret = tmp_path / "secret"
    secret.write_bytes(b"mine")
    (tmp_path / "real" / KEY / "0" / "writing").symlink_to(secret)
    with pytest.raises(OSError, match="symbolic links"):
        holder.write(2)
    assert secret.read_bytes() == b"mine"


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(TierError, match="others must not write"):
        Holder(tmp_path / "open")
    (tmp_path / "file").write_text("")
    with pytest.raises(TierError, match="cannot make"):
        Holder(tmp_path / "file")


@pytest.mark.parametrize("limit_bytes", [0, PAGE_BYTES, FILE_BYTES - 1])
def test_a_write_that_fails_leaves_nothing(tmp_path: Path, limit_bytes: int) -> None:
    holder = Holder(tmp_path)
    holder.write(1)
    with files_at_most(limit_bytes), pytest.raises(OSError):
        holder.write(2)
    assert holder.has(1, 2) == [True, False]
    assert not (tmp_path / KEY / "0" / "writing").exists()
    assert holder.store.index.used_bytes == FILE_BYTES
    holder.write(2)
    assert holder.read(2) == content_of(2)


def test_without_o_direct_it_goes_by_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diptych.tiers.files.can_bypass_page_cache", lambda _: False)
    holder = Holder(tmp_path)
    holder.write(1)
    assert not holder.store.is_direct
    assert holder.read(1) == content_of(1)


def test_whether_a_file_system_has_o_direct_is_tried_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_open = os.open

    def refuse(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real_open(path, flags, mode)

    can_bypass_page_cache(tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(os, "open", refuse)
    assert not can_bypass_page_cache(tmp_path)


def test_keys_differ_by_every_fact() -> None:
    facts = [{"model": "a"}, {"model": "b"}, {"model": "a", "threads": "2"}, {"threads": "2"}]
    keys = {kv_key(FINGERPRINT, one) for one in facts} | {kv_key("f" * 16, facts[0])}
    assert len(keys) == 5
    assert all(is_kv_key(key) for key in keys)
    assert not any(is_kv_key(name) for name in ("photos", "0", f"{KEY}.old", f"../{KEY}", ""))
