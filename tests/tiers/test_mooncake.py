"""The tier in a real Mooncake Store: what one worker stores another one loads, and every fault is a miss in time."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.live_server import eventually
from tests.mooncake_store import CLIENT_TTL_S, MooncakeStore, mooncake_store
from tests.tiers.stored_blocks import BLOCK_BYTES, FINGERPRINT, KEY, content_of, hash_of

from diptych.core.cache_status import TierState
from diptych.core.clock import VirtualClock
from diptych.core.ids import BlockHash
from diptych.tiers import mooncake
from diptych.tiers.base import Target
from diptych.tiers.block_file import BlockFormat
from diptych.tiers.kv_key import kv_key
from diptych.tiers.mooncake import NUM_LOAD_SLOTS, MooncakeTier
from diptych.tiers.mooncake_link import MooncakeLink, SharedSlots, StoreSettings
from diptych.tiers.rest import FIRST_REST_S
from diptych.tiers.store_index import ABSENT_S, FRESH_S
from diptych.tiers.store_messages import Channel, Done, Drop, Put, Stored

OTHER_KEY = kv_key(FINGERPRINT, {"model": "other"})


def settings_of(store: MooncakeStore, key: str = KEY, block_bytes: int = BLOCK_BYTES) -> StoreSettings:
    return StoreSettings(master=store.address, host="127.0.0.1", key=key, block_bytes=block_bytes)


class Worker:
    """A worker's tier, and memory for blocks of two runs of bytes each."""

    def __init__(self, settings: StoreSettings) -> None:
        self.clock = VirtualClock(100.0)
        self.block_bytes = settings.block_bytes
        self.tier = MooncakeTier(settings, self.clock, lambda: None)

    def wait_until(self, state: TierState) -> "Worker":
        eventually(lambda: self.tier.status().state is state, f"{state}: {self.tier.status()}")
        return self

    def content(self, number: int) -> bytes:
        repeats = -(-self.block_bytes // BLOCK_BYTES)
        return (content_of(number) * repeats)[: self.block_bytes]

    def try_store(self, number: int) -> bool:
        content = memoryview(self.content(number))
        return self.tier.try_store(hash_of(number), [content[:100], content[100:]])

    def store(self, *numbers: int) -> None:
        for number in numbers:
            eventually(lambda number=number: self.try_store(number), "a free slot")  # type: ignore[misc]
        eventually(lambda: all(self.tier.holds(hash_of(number)) for number in numbers), "stored")

    def store_in_the_end(self, *numbers: int) -> None:
        """Store blocks, whatever else happens meanwhile."""

        def is_stored(number: int) -> bool:
            self.clock.sleep(FIRST_REST_S / 10)
            return self.tier.holds(hash_of(number)) or (self.try_store(number) and False)

        for number in numbers:
            eventually(lambda number=number: is_stored(number), f"block {number} stored")  # type: ignore[misc]

    def num_leading(self, *numbers: int) -> int:
        hashes = [hash_of(number) for number in numbers]
        eventually(lambda: self.tier.num_leading_blocks(hashes) is not None, "the store says what it has")
        num_leading = self.tier.num_leading_blocks(hashes)
        assert num_leading is not None
        return num_leading

    def begin(self, *numbers: int) -> tuple[Any, list[bytearray]]:
        blocks = [bytearray(self.block_bytes) for _ in numbers]
        targets = [
            Target(hash_of(number), [memoryview(block)[:100], memoryview(block)[100:]])
            for number, block in zip(numbers, blocks, strict=True)
        ]
        return self.tier.load(targets), blocks

    def load(self, *numbers: int) -> list[bytes]:
        """Return what has been loaded."""
        loading, blocks = self.begin(*numbers)
        eventually(lambda: loading.is_over, "loaded")
        return [bytes(block) for block in blocks[: loading.num_loaded]]


StartWorker = Callable[..., Worker]
Vandal = Callable[[BlockHash, bytes | None], None]
FILE_BYTES = 3 * 4096


@pytest.fixture(scope="module", autouse=True)
def _quick_housekeeping() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mooncake, "HOUSEKEEPING_S", 0.1)
        yield


@pytest.fixture(scope="module")
def shared_store() -> Iterator[MooncakeStore]:
    """A store of two machines. Leave them alone; blocks of one test are not another's."""
    with mooncake_store(2) as store:
        yield store


@pytest.fixture(scope="module")
def shared_pair(shared_store: MooncakeStore) -> Iterator[tuple[Worker, Worker]]:
    """Two workers of different machines, for all tests."""
    one, other = Worker(settings_of(shared_store)), Worker(settings_of(shared_store))
    one.wait_until(TierState.READY).store_in_the_end(0)  # by then the store has memory
    yield one, other
    one.tier.close(5.0)
    other.tier.close(5.0)


@pytest.fixture
def pair(shared_pair: tuple[Worker, Worker]) -> tuple[Worker, Worker]:
    """Both of them, at work."""
    one, other = shared_pair
    return one.wait_until(TierState.READY), other.wait_until(TierState.READY)


@pytest.fixture
def start_worker() -> Iterator[StartWorker]:
    """Start workers' tiers that end with the test."""
    with ExitStack() as running:

        def start(store: MooncakeStore, **changes: Any) -> Worker:
            worker = Worker(settings_of(store, **changes))
            running.callback(worker.tier.close, 5.0)
            return worker

        yield start


@pytest.fixture(scope="module")
def vandal(shared_store: MooncakeStore) -> Iterator[Vandal]:
    """Put anything in a block's place in the store, or remove it."""
    slots = SharedSlots(1, FILE_BYTES)
    link = MooncakeLink(settings_of(shared_store), slots)
    link.open()

    def damage(block_hash: BlockHash, content: bytes | None) -> None:
        key = f"{KEY}/{block_hash.hex()}"
        link.ask(Channel.STORES, Drop(key), Done)
        if content is not None:
            slots[0][:] = content
            assert link.ask(Channel.STORES, Put(key, 0), Stored).refusal is None

    yield damage
    link.close()
    slots.close()


def test_what_one_worker_stores_another_one_loads(pair: tuple[Worker, Worker]) -> None:
    one, other = pair
    before = one.tier.status(), other.tier.status()
    numbers = range(100, 100 + NUM_LOAD_SLOTS + 3)
    one.store(*numbers)
    assert one.tier.num_leading_blocks([hash_of(100)]) == 1, "it knows what it has stored"
    assert not other.tier.holds(hash_of(100))
    assert other.tier.num_leading_blocks([hash_of(100)]) is None, "another one must ask"
    assert other.num_leading(*numbers, 199) == len(numbers)
    assert other.tier.holds(hash_of(100))
    assert other.load(*numbers) == [other.content(number) for number in numbers]
    status = other.tier.status()
    assert status.num_loaded_blocks - before[1].num_loaded_blocks == len(numbers)
    assert status.num_missing_blocks == before[1].num_missing_blocks
    assert status.load_bytes_per_s > 0
    assert one.tier.status().num_stored_blocks - before[0].num_stored_blocks == len(numbers)
    assert one.tier.store_cost_s > 0


def test_another_models_blocks_are_not_there(
    pair: tuple[Worker, Worker], shared_store: MooncakeStore, start_worker: StartWorker
) -> None:
    pair[0].store(200)
    other = start_worker(shared_store, key=OTHER_KEY).wait_until(TierState.READY)
    assert other.num_leading(200) == 0
    assert other.load(200) == []
    other.clock.sleep(ABSENT_S)
    other.store(200)
    assert other.num_leading(200) == 1


DAMAGES = {"evicted": None, "zeros": bytes(FILE_BYTES), "garbage": b"\xff" * FILE_BYTES}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_as_it_was_stored_is_a_miss_and_can_be_stored_again(
    pair: tuple[Worker, Worker], vandal: Vandal, damage: str
) -> None:
    one, other = pair
    first = 300 + 10 * list(DAMAGES).index(damage)
    numbers = first, first + 1, first + 2
    one.store(*numbers)
    assert other.num_leading(*numbers) == 3
    before = other.tier.status()
    vandal(hash_of(first + 1), DAMAGES[damage])
    assert other.load(*numbers) == [other.content(first)]
    status = other.tier.status()
    num_missing = status.num_missing_blocks - before.num_missing_blocks
    num_corrupt = status.num_corrupt_blocks - before.num_corrupt_blocks
    assert (num_missing, num_corrupt) == ((1, 0) if damage == "evicted" else (0, 1))
    assert status.state is TierState.READY, "one bad block is no bad store"
    assert not other.tier.holds(hash_of(first + 1))
    other.store(first + 1)
    one.clock.sleep(FRESH_S)
    assert one.num_leading(*numbers) == 3
    assert one.load(*numbers) == [one.content(number) for number in numbers]


@pytest.mark.parametrize(("key", "number"), [(KEY, 401), (OTHER_KEY, 400)], ids=["block", "model"])
def test_what_is_whole_but_another_blocks_or_models_is_a_miss(
    pair: tuple[Worker, Worker], vandal: Vandal, key: str, number: int
) -> None:
    worker, _ = pair
    worker.store(400)
    foreign, other_format = memoryview(bytearray(FILE_BYTES)), BlockFormat(key, BLOCK_BYTES)
    other_format.payload(foreign)[:] = worker.content(number)
    other_format.seal(foreign, hash_of(number))
    vandal(hash_of(400), bytes(foreign))
    assert worker.load(400) == []


def test_a_cancelled_loading_touches_nothing_any_more(pair: tuple[Worker, Worker]) -> None:
    worker, _ = pair
    worker.store(500, 501)
    loading, blocks = worker.begin(500, 501)
    loading.cancel()
    assert loading.is_over
    before = [bytes(block) for block in blocks]
    assert worker.load(500, 501) == [worker.content(500), worker.content(501)]
    assert [bytes(block) for block in blocks] == before


def test_the_process_between_may_die(pair: tuple[Worker, Worker]) -> None:
    worker, _ = pair
    worker.store(600)
    life = worker.tier._link._life
    assert life is not None
    os.kill(life.process.pid, signal.SIGKILL)
    assert worker.load(600) == []
    worker.wait_until(TierState.RESTING)
    assert worker.tier.num_leading_blocks([hash_of(600)]) == 0
    assert not worker.try_store(601)
    worker.clock.sleep(FIRST_REST_S)
    worker.wait_until(TierState.READY)
    assert worker.num_leading(600) == 1
    assert worker.load(600) == [worker.content(600)]


@pytest.mark.slow
def test_a_dead_machine_takes_its_blocks_with_it_and_nothing_else(start_worker: StartWorker) -> None:
    with mooncake_store(1) as store:
        worker = start_worker(store).wait_until(TierState.READY)
        worker.store_in_the_end(1, 2)
        store.machines[0].kill()
        begin_s = time.monotonic()
        assert worker.load(1, 2) == [], "the master believes that they are there"
        assert time.monotonic() - begin_s < 3.5
        store.add_machine()
        worker.clock.sleep(10 * FIRST_REST_S)
        time.sleep(CLIENT_TTL_S)
        worker.store_in_the_end(3)
        assert worker.load(3) == [worker.content(3)]


@pytest.mark.slow
def test_a_machine_that_hangs_costs_no_more_than_the_patience(start_worker: StartWorker) -> None:
    with mooncake_store(1) as store:
        worker = start_worker(store).wait_until(TierState.READY)
        worker.store_in_the_end(1)
        store.machines[0].pause()
        loading, blocks = worker.begin(1)
        time.sleep(0.2)
        assert not loading.is_over
        loading.give_up()
        assert loading.is_over
        assert worker.tier.status().state is TierState.RESTING
        assert worker.tier.num_leading_blocks([hash_of(1)]) == 0
        store.machines[0].resume()
        time.sleep(0.5)
        assert blocks == [bytearray(worker.block_bytes)]


@pytest.mark.slow
@pytest.mark.parametrize("is_dead", [True, False], ids=["dead", "hung"])
def test_a_master_that_is_gone_is_noticed_and_found_again(start_worker: StartWorker, is_dead: bool) -> None:
    with mooncake_store(1) as store:
        worker = start_worker(store).wait_until(TierState.READY)
        worker.store_in_the_end(1)
        assert store.master is not None
        store.master.kill() if is_dead else store.master.pause()
        assert worker.load(1) == []
        worker.wait_until(TierState.RESTING)
        assert re.search("master|no answer", worker.tier.status().trouble)
        assert worker.tier.num_leading_blocks([hash_of(1)]) == 0
        assert not worker.try_store(2)
        store.start_master() if is_dead else store.master.resume()
        worker.clock.sleep(FIRST_REST_S)
        worker.wait_until(TierState.READY)
        worker.store_in_the_end(2)
        assert worker.load(2) == [worker.content(2)]


def test_no_process_outlives_the_worker_that_started_it(shared_store: MooncakeStore) -> None:
    script = """
import sys, time
from tests.tiers.test_mooncake import KEY, StoreSettings, TierState, Worker
worker = Worker(StoreSettings(master=sys.argv[1], host="127.0.0.1", key=KEY, block_bytes=6000))
worker.wait_until(TierState.READY)
print(worker.tier._link._life.process.pid, flush=True)
time.sleep(60)
"""
    command = [sys.executable, "-c", script, shared_store.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as worker:
        assert worker.stdout is not None
        process = Path("/proc") / worker.stdout.readline().strip()
        assert "mooncake_process" in (process / "cmdline").read_text()
        worker.kill()
    eventually(lambda: not (process / "cmdline").exists(), "its end")


def test_a_store_that_is_not_there_yet_is_found_when_it_is(
    start_worker: StartWorker, caplog: pytest.LogCaptureFixture
) -> None:
    with mooncake_store(0, has_master=False) as store:
        worker = start_worker(store).wait_until(TierState.RESTING)
        assert "the shared store of KV rests" in caplog.text
        assert worker.tier.num_leading_blocks([hash_of(1)]) == 0
        assert not worker.try_store(1)
        assert worker.load(1) == []
        store.start_master()
        worker.clock.sleep(10 * FIRST_REST_S)
        worker.wait_until(TierState.READY)
        eventually(lambda: worker.try_store(1), "a free slot")
        worker.wait_until(TierState.RESTING)
        assert "no machine gives it memory" in worker.tier.status().trouble


@pytest.mark.slow
def test_a_full_store_makes_room_and_what_it_has_evicted_is_a_miss(start_worker: StartWorker) -> None:
    with mooncake_store(1, memory="32MB") as store:
        worker = start_worker(store, block_bytes=10**6).wait_until(TierState.READY)
        worker.store_in_the_end(*range(60))
        worker.clock.sleep(FRESH_S)
        numbers = [number for number in range(60) if worker.num_leading(number)]
        assert 0 < len(numbers) <= 32
        assert worker.load(numbers[-1]) == [worker.content(numbers[-1])]


HOT = ("--dynamic_replication_mode=enforce", "--dynamic_replication_admission_qps_threshold=0.2")


@pytest.mark.slow
def test_blocks_that_are_asked_for_often_survive_their_machine(start_worker: StartWorker) -> None:
    with mooncake_store(2, master_flags=HOT) as store:
        worker = start_worker(store).wait_until(TierState.READY)
        numbers = range(6)  # by chance on one machine or the other
        worker.store_in_the_end(*numbers)
        for _ in range(4):
            assert len(worker.load(*numbers)) == len(numbers)
        store.wait_for_replicas([f"{KEY}/{hash_of(number).hex()}" for number in numbers], 2)
        store.machines[0].kill()
        time.sleep(CLIENT_TTL_S + 1)  # until then the master sends half of the readers to the dead
        assert worker.load(*numbers) == [worker.content(number) for number in numbers]


def test_closing_does_not_wait_for_a_store_that_does_not_answer() -> None:
    with mooncake_store(0, has_master=False) as store:
        worker = Worker(settings_of(store))
        begin_s = time.monotonic()
        worker.tier.close(0.5)
        assert time.monotonic() - begin_s < 5
