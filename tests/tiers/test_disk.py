"""The disk tier with its threads: loads, stores, and what becomes of it when the disk is slow, full or broken."""

import errno
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.live_server import eventually
from tests.tiers.stored_blocks import BLOCK_BYTES, KEY, content_of, files_at_most, files_in, hash_of

from diptych.core.cache_status import TierState
from diptych.core.clock import VirtualClock
from diptych.tiers.base import Target
from diptych.tiers.disk import NUM_STORE_BUFFERS, DiskTier
from diptych.tiers.disk_store import DiskSettings, DiskStore
from diptych.tiers.load_speed import MEASURED_FOR_S
from diptych.tiers.rest import FIRST_REST_S, Rest


class Disk:
    """A tier in a folder, and memory for blocks of two runs of bytes each."""

    def __init__(self, root: Path) -> None:
        self.clock = VirtualClock(100.0)
        self.changes = threading.Semaphore(0)
        settings = DiskSettings(root=root, key=KEY, block_bytes=BLOCK_BYTES, limit_bytes=10**6, num_sharers=1)
        self.tier = DiskTier(settings, self.clock, self.changes.release)

    def wait_until_open(self) -> "Disk":
        eventually(lambda: self.tier.status().state is TierState.READY, "open")
        return self

    def store(self, number: int) -> bool:
        content = memoryview(content_of(number))
        return self.tier.try_store(hash_of(number), [content[:100], content[100:]])

    def store_all(self, *numbers: int) -> None:
        for number in numbers:
            eventually(lambda number=number: self.store(number), "a free buffer")  # type: ignore[misc]
        eventually(lambda: all(self.tier.holds(hash_of(number)) for number in numbers), "stored")

    def load(self, *numbers: int) -> tuple[Any, list[bytearray]]:
        blocks = [bytearray(BLOCK_BYTES) for _ in numbers]
        targets = [
            Target(hash_of(number), [memoryview(block)[:100], memoryview(block)[100:]])
            for number, block in zip(numbers, blocks, strict=True)
        ]
        return self.tier.load(targets), blocks

    def load_all(self, *numbers: int) -> list[bytes]:
        """Return what has been loaded."""
        loading, blocks = self.load(*numbers)
        eventually(lambda: loading.is_over, "loaded")
        return [bytes(block) for block in blocks[: loading.num_loaded]]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path)
    yield disk.wait_until_open()
    disk.tier.close(10.0)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Let reads hang until it is opened, after they have been found out."""
    opened = threading.Event()
    read = DiskStore.read

    def slow(store: DiskStore, *arguments: Any) -> Any:
        opened.wait(60)
        return read(store, *arguments)

    monkeypatch.setattr(DiskStore, "read", slow)
    yield opened
    opened.set()


def test_blocks_go_down_and_come_up_again(disk: Disk) -> None:
    disk.store_all(1, 2, 3)
    assert disk.tier.num_leading_blocks([hash_of(2), hash_of(3), hash_of(4)]) == 2
    assert disk.load_all(2, 3, 1) == [content_of(2), content_of(3), content_of(1)]
    assert disk.changes.acquire(timeout=10), "the loop is woken"
    status = disk.tier.status()
    assert (status.num_stored_blocks, status.num_loaded_blocks, status.num_failures) == (3, 3, 0)
    assert status.load_bytes_per_s > 0
    assert disk.tier.store_cost_s > 0


def test_a_load_ends_at_the_first_block_that_is_not_to_be_had(disk: Disk, tmp_path: Path) -> None:
    disk.store_all(1, 2, 3)
    assert disk.load_all(1, 9, 2) == [content_of(1)]
    path = next(path for path in files_in(tmp_path) if path.name == hash_of(2).hex())
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert disk.load_all(1, 2, 3) == [content_of(1)]
    assert disk.tier.status().num_corrupt_blocks == 1
    assert disk.tier.status().state is TierState.READY, "one bad file is no bad disk"


def test_it_is_there_after_a_restart(disk: Disk, tmp_path: Path) -> None:
    disk.store_all(1)
    assert disk.store(2)
    disk.tier.close(10.0)  # stores what waits
    again = Disk(tmp_path).wait_until_open()
    assert again.load_all(1, 2) == [content_of(1), content_of(2)]
    again.tier.close(10.0)


def test_nothing_is_written_into_a_target_after_a_cancel(disk: Disk, gate: threading.Event) -> None:
    disk.store_all(1, 2)
    loading, blocks = disk.load(1, 2)
    loading.cancel()
    assert loading.is_over, "although a read is under way"
    gate.set()
    assert disk.load_all(2) == [content_of(2)]  # by then the first one's thread has gone on
    assert blocks == [bytearray(BLOCK_BYTES)] * 2
    assert disk.tier.status().state is TierState.READY


def test_a_disk_that_hangs_rests_and_is_tried_again(disk: Disk, gate: threading.Event) -> None:
    disk.store_all(1)
    loading, _ = disk.load(1)
    loading.give_up()
    assert loading.is_over
    status = disk.tier.status()
    assert (status.state, status.num_failures) == (TierState.RESTING, 1)
    assert "too long" in status.trouble
    assert disk.tier.num_leading_blocks([hash_of(1)]) == 0
    disk.store_all(2)  # which is another matter
    disk.clock.sleep(FIRST_REST_S)
    assert disk.tier.num_leading_blocks([hash_of(1)]) == 1
    gate.set()
    assert disk.load_all(1) == [content_of(1)]
    assert disk.tier.status().state is TierState.READY


def test_a_full_disk_stores_nothing_and_still_loads(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    disk.store_all(1)
    with files_at_most(0):
        assert disk.store(2)
        eventually(lambda: disk.tier.status().state is TierState.RESTING, "found out")
        assert not disk.store(3)
        assert disk.load_all(1) == [content_of(1)]
        disk.clock.sleep(FIRST_REST_S)
        eventually(lambda: disk.store(3), "tried again")
        eventually(lambda: disk.tier.status().num_failures == 2, "in vain")
        disk.clock.sleep(FIRST_REST_S)
        assert not disk.store(3), "rests get longer"
    assert len([record for record in caplog.records if "rests" in record.message]) == 1
    disk.clock.sleep(FIRST_REST_S)
    disk.store_all(3)
    assert disk.tier.status().state is TierState.READY


def test_a_folder_that_cannot_be_used_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "kv").write_text("in the way")
    disk = Disk(tmp_path / "kv")
    eventually(lambda: disk.tier.status().state is TierState.RESTING, "found out")
    assert not disk.store(1)
    assert disk.tier.num_leading_blocks([hash_of(1)]) == 0
    (tmp_path / "kv").unlink()
    disk.clock.sleep(FIRST_REST_S)
    disk.wait_until_open().store_all(1)
    disk.tier.close(10.0)


def test_an_error_of_reading_rests(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    disk.store_all(1)
    monkeypatch.setattr(DiskStore, "read", fail)
    assert disk.load_all(1) == []
    assert "Input/output error" in disk.tier.status().trouble


def test_no_more_wait_than_there_are_buffers(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    may_write = threading.Event()
    write = DiskStore.write

    def slow(store: DiskStore, *arguments: Any) -> None:
        may_write.wait(60)
        write(store, *arguments)

    monkeypatch.setattr(DiskStore, "write", slow)
    assert [disk.store(number) for number in range(NUM_STORE_BUFFERS + 2)] == [True] * NUM_STORE_BUFFERS + [False] * 2
    may_write.set()
    disk.store_all(NUM_STORE_BUFFERS)


def test_what_waits_before_counts_and_an_old_measurement_does_not(disk: Disk, gate: threading.Event) -> None:
    disk.store_all(1)
    guess_s = disk.tier.predict_load_s(1)
    assert disk.tier.predict_load_s(4) == pytest.approx(4 * guess_s)
    loading, _ = disk.load(1, 1, 1)
    assert disk.tier.predict_load_s(1) == pytest.approx(4 * guess_s)
    gate.set()
    eventually(lambda: loading.is_over, "loaded")
    assert disk.tier.predict_load_s(1) != guess_s
    disk.clock.sleep(MEASURED_FOR_S)
    assert disk.tier.predict_load_s(1) == guess_s


def test_rests_grow_and_end(caplog: pytest.LogCaptureFixture) -> None:
    rest = Rest("it")
    assert not rest.is_on(0.0)
    rest.on_trouble(0.0, "bad")
    rest.on_trouble(1.0, "still bad")  # of the same trouble
    assert rest.is_on(FIRST_REST_S - 0.1) and not rest.is_on(FIRST_REST_S)
    rest.on_trouble(10.0, "bad again")
    assert rest.is_on(10.0 + 2 * FIRST_REST_S - 0.1) and not rest.is_on(10.0 + 2 * FIRST_REST_S)
    rest.on_success()
    assert (rest.trouble, rest.num_troubles) == ("", 3)
    rest.on_trouble(100.0, "new")
    assert not rest.is_on(100.0 + FIRST_REST_S)
    assert len(caplog.records) == 3, "bad, well, new"
