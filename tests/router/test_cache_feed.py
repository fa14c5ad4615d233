"""What the router believes of workers' caches when messages are missing, and when it asks."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from tests.router.conftest import worker_status

from diptych.core.clock import VirtualClock
from diptych.core.errors import PeerUnreachableError
from diptych.core.ids import BlockHash, WorkerId
from diptych.core.messages import (
    CacheChange,
    CacheSnapshot,
    CacheSnapshotWanted,
    Heartbeat,
    Message,
    PeerAddress,
    Role,
    WorkerState,
)
from diptych.router.cache_feed import ASK_INTERVAL_S, MAX_OPEN_SNAPSHOTS, CacheFeed
from diptych.router.prefix_index import PrefixIndex

if TYPE_CHECKING:
    from tests.router.conftest import Cluster

HASHES = [BlockHash(bytes([number]) * 16) for number in range(6)]
DECODE_0, DECODE_1 = WorkerId("decode-0"), WorkerId("decode-1")


def change(sequence: int, stored: str = "", removed: str = "", *, cleared: bool = False) -> CacheChange:
    def pick(digits: str) -> list[BlockHash]:
        return [HASHES[int(digit)] for digit in digits]

    return CacheChange(sequence=sequence, stored=pick(stored), removed=pick(removed), cleared=cleared)


class Room:
    """A feed, and what it has asked of whom."""

    def __init__(self) -> None:
        self.index = PrefixIndex()
        self.clock = VirtualClock()
        self.asked: list[str] = []
        self.is_full = False
        self.feed = CacheFeed(self.index, self, self.clock)

    def send(self, endpoint: str, message: Message) -> None:
        if self.is_full:
            raise PeerUnreachableError("full")
        assert isinstance(message, CacheSnapshotWanted)
        self.asked.append(endpoint)

    def forget(self, peer: PeerAddress) -> None:
        """Nothing is queued."""

    def heartbeat(self, sequence: int, worker_id: WorkerId = DECODE_0, incarnation: int = 1) -> None:
        address = PeerAddress(worker_id, f"ipc://{worker_id}-{incarnation}", incarnation)
        status = worker_status(cache_sequence=sequence)
        self.feed.on_heartbeat(Heartbeat(role=Role.DECODE, address=address, status=status))

    def snapshot(self, sequence: int, *pieces: str, number: int = 1, incarnation: int = 1) -> list[CacheSnapshot]:
        return [
            CacheSnapshot(
                worker_id=DECODE_0,
                incarnation=incarnation,
                snapshot=number,
                sequence=sequence,
                piece=place,
                num_pieces=len(pieces),
                stored=change(1, digits).stored,
            )
            for place, digits in enumerate(pieces)
        ]

    def sweep(self, after_s: float = 0.0) -> list[str]:
        """Return who is asked now."""
        self.clock.sleep(after_s)
        self.asked.clear()
        self.feed.sweep()
        return list(self.asked)

    def num_held(self, worker_id: WorkerId = DECODE_0) -> int:
        self.index.check_invariants()
        return self.index.match_blocks(HASHES).get(worker_id, 0)


@pytest.fixture
def room() -> Room:
    return Room()


def test_changes_in_order_need_no_question(room: Room) -> None:
    room.heartbeat(0)
    room.feed.on_change(DECODE_0, 1, change(1, "0123"))
    room.feed.on_change(DECODE_0, 1, change(1, "012345"))  # an echo
    room.feed.on_change(DECODE_0, 1, change(2, "4", removed="3"))
    assert room.num_held() == 3
    room.feed.on_change(DECODE_0, 1, change(3, "01", cleared=True))
    room.heartbeat(3)
    assert room.num_held() == 2
    assert room.index.num_blocks_of(DECODE_0) == 2
    assert room.sweep() == []


def test_a_gap_forgets_what_may_be_false_and_asks(room: Room) -> None:
    room.heartbeat(0)
    room.feed.on_change(DECODE_0, 1, change(1, "012"))
    room.feed.on_change(DECODE_0, 1, change(3, "34"))
    assert room.num_held() == 0
    assert room.sweep() == ["ipc://decode-0-1"]
    room.feed.on_change(DECODE_0, 1, change(4, "5"))  # on its way when the worker was asked
    for piece in room.snapshot(4, "01", "23"):
        room.feed.on_snapshot(piece)
    assert room.num_held() == 4
    room.feed.on_change(DECODE_0, 1, change(5, removed="3"))
    assert room.num_held() == 3
    assert room.sweep(10 * ASK_INTERVAL_S) == []


def test_a_change_that_was_lost_and_not_followed_by_another_shows_in_the_heartbeat(room: Room) -> None:
    room.heartbeat(0)
    room.feed.on_change(DECODE_0, 1, change(1, "01"))
    room.heartbeat(1)
    assert room.sweep() == []
    room.heartbeat(2)
    assert room.num_held() == 0
    assert room.sweep() == ["ipc://decode-0-1"]


def test_a_router_that_comes_late_asks(room: Room) -> None:
    room.feed.on_change(DECODE_0, 1, change(7, "5"))
    assert room.sweep() == [], "nobody knows where that worker is"
    room.heartbeat(7)
    assert room.sweep() == ["ipc://decode-0-1"]


def test_pieces_of_two_snapshots_are_never_put_together(room: Room) -> None:
    room.heartbeat(1)
    first, second = room.snapshot(1, "0", "12", "34", number=1), room.snapshot(1, "3", "41", "20", number=2)
    room.feed.on_snapshot(first[0])
    room.feed.on_snapshot(first[2])
    room.feed.on_snapshot(second[1])
    assert room.num_held() == 1
    for piece in first[1:]:
        room.feed.on_snapshot(piece)
    assert room.num_held() == 5
    room.feed.on_snapshot(second[0])  # late, and no more wanted
    assert room.num_held() == 5


def test_a_snapshot_begins_anew_with_its_first_piece(room: Room) -> None:
    room.heartbeat(1)
    old, new = room.snapshot(1, "012", "3", number=1), room.snapshot(2, "01", number=2)
    room.feed.on_snapshot(old[0])
    room.feed.on_snapshot(new[0])
    room.feed.on_snapshot(old[1])
    assert room.num_held() == 2
    room.feed.on_change(DECODE_0, 1, change(3, "2"))
    assert room.num_held() == 3


def test_a_worker_is_asked_again_but_not_often(room: Room) -> None:
    room.heartbeat(1)
    assert room.sweep() == ["ipc://decode-0-1"]
    assert room.sweep(ASK_INTERVAL_S * 0.9) == []
    assert room.sweep(ASK_INTERVAL_S * 0.2) == ["ipc://decode-0-1"]
    for piece in room.snapshot(1, "0"):
        room.feed.on_snapshot(piece)
    room.feed.on_change(DECODE_0, 1, change(9, "1"))  # the next gap at once
    assert room.sweep() == []
    assert room.sweep(ASK_INTERVAL_S) == ["ipc://decode-0-1"]
    room.is_full = True
    assert room.sweep(ASK_INTERVAL_S) == []
    room.is_full = False
    assert room.sweep(ASK_INTERVAL_S) == ["ipc://decode-0-1"], "a question that was not sent is asked again"


def test_few_snapshots_are_awaited_at_a_time_and_all_come_to_their_turn(room: Room) -> None:
    workers = [WorkerId(f"decode-{number}") for number in range(2 * MAX_OPEN_SNAPSHOTS + 1)]
    for worker_id in workers:
        room.heartbeat(1, worker_id)
    asked: set[str] = set()
    for num_rounds in range(1, 4):
        now = room.sweep(ASK_INTERVAL_S)
        assert len(now) <= MAX_OPEN_SNAPSHOTS
        assert room.sweep() == []
        asked.update(now)
        assert len(asked) == min(num_rounds * MAX_OPEN_SNAPSHOTS, len(workers)), "nobody is asked twice before all are"


def test_a_new_life_starts_empty_and_the_old_one_is_not_heard(room: Room) -> None:
    room.heartbeat(0)
    room.feed.on_change(DECODE_0, 1, change(1, "012"))
    room.feed.on_change(DECODE_0, 2, change(1, "0"))
    room.feed.on_change(DECODE_0, 1, change(2, "34"))
    room.heartbeat(9, incarnation=1)
    assert room.num_held() == 1
    assert room.sweep() == []
    room.heartbeat(1, incarnation=3)  # it has what the one before it has left
    assert room.num_held() == 0
    assert room.sweep() == ["ipc://decode-0-3"]
    for piece in room.snapshot(1, "0123", incarnation=2):
        room.feed.on_snapshot(piece)
    assert room.num_held() == 0
    for piece in room.snapshot(1, "012", incarnation=3):
        room.feed.on_snapshot(piece)
    assert room.num_held() == 3


def test_a_worker_that_is_gone_holds_nothing_whatever_still_arrives(room: Room) -> None:
    room.heartbeat(0)
    room.feed.on_change(DECODE_0, 1, change(1, "0"))
    room.feed.on_worker_gone(DECODE_0, 1)
    room.feed.on_change(DECODE_0, 1, change(2, "01"))
    room.heartbeat(5)
    room.feed.on_worker_gone(DECODE_1, 4)  # it dies before it has said a word
    room.feed.on_change(DECODE_1, 4, change(1, "01"))
    assert room.index.match_blocks(HASHES) == {}
    assert room.sweep() == []
    room.feed.on_change(DECODE_0, 2, change(1, "0"))
    room.feed.on_worker_gone(DECODE_0, 1)  # said twice, the second time late
    assert room.index.match_blocks(HASHES) == {DECODE_0: 1}


def test_a_worker_that_dies_while_it_is_asked_is_asked_no_more(room: Room) -> None:
    room.heartbeat(1)
    assert room.sweep() == ["ipc://decode-0-1"]
    room.feed.on_snapshot(room.snapshot(1, "0", "1")[0])
    room.feed.on_worker_gone(DECODE_0, 1)
    room.feed.on_snapshot(room.snapshot(1, "0", "1")[1])
    assert room.num_held() == 0
    assert room.sweep(ASK_INTERVAL_S) == []


def test_the_router_places_by_what_a_snapshot_told_it(make_cluster: "Callable[..., Cluster]") -> None:
    """It is as if it had just come up: workers are there, with caches that it has never heard of."""

    async def scenario(cluster: "Cluster") -> None:
        cluster.heartbeat("decode-0")
        cluster.heartbeat("decode-1", cache_sequence=12)
        cluster.heartbeat("prefill-0")
        cluster.advance(0.1)
        assert cluster.sent(CacheSnapshotWanted) == ["decode-1"]
        cluster.router.on_message(cluster.snapshot("decode-1", 2, 12))
        tasks = [await cluster.start(cluster.request("r0", num_prompt_tokens=11))]
        assert [decode for decode, _, _ in cluster.submits()] == ["decode-1"]
        cluster.exited("decode-1", will_return=False)
        cluster.router.on_message(cluster.snapshot("decode-1", 2, 12))
        tasks.append(await cluster.start(cluster.request("r1", num_prompt_tokens=11)))
        assert cluster.submits()[-1][0] == "decode-0"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    cluster = make_cluster()
    cluster.run(scenario(cluster))
    assert cluster.router.status().workers[WorkerId("decode-1")].status.state is WorkerState.DEAD
