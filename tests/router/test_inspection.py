"""Messages to the router that are well-formed and make no sense never reach it."""

import asyncio
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import zmq
import zmq.asyncio
from hypothesis import given
from hypothesis import strategies as st
from tests.hostile_frames import HostileMessages, Known

from diptych.core.addresses import inbox_name
from diptych.core.bounds import MAX_SNAPSHOT_PIECE_BLOCKS
from diptych.core.ids import BlockHash, RequestId, WorkerId
from diptych.core.messages import (
    CacheChange,
    CacheSnapshot,
    Heartbeat,
    Message,
    PeerAddress,
    Role,
    TokenEvent,
    Tokens,
    ToRouter,
    WorkerExited,
    WorkerState,
    WorkerStatus,
)
from diptych.core.service import EndOut, TokensOut
from diptych.router.inspection import InspectedInbox
from diptych.wire.dropped import DroppedMessages
from diptych.wire.frame import HEADER, FrameDecoder, encode_frame
from diptych.wire.mailbox import AsyncInbox
from diptych.wire.neighbours import Neighbours

if TYPE_CHECKING:
    from tests.router.conftest import Cluster

DECODE = WorkerId("decode-0")
STATUS = WorkerStatus(
    state=WorkerState.READY,
    pid=1,
    cores=[0],
    engine="scripted",
    num_blocks=10,
    num_free_blocks=6,
    num_cached_blocks=4,
    num_running=0,
    num_waiting=0,
    queued_prefill_tokens=0,
    prefill_tokens_per_s=1.0,
    decode_step_s=0.0,
    memory_bytes=0,
    num_steps=0,
)


class Room:
    """A router's inbox beside those of two workers."""

    def __init__(self, folder: Path) -> None:
        self.endpoint = f"ipc://{folder}/router"
        self.context = zmq.asyncio.Context()
        inbox: AsyncInbox[ToRouter] = AsyncInbox(self.context, self.endpoint, ToRouter)
        self.bare_inbox = inbox
        self.inbox = InspectedInbox(inbox, Neighbours(self.endpoint, {DECODE: Role.DECODE}))
        (folder / inbox_name(DECODE, 3)).touch()
        self.address = PeerAddress(DECODE, f"ipc://{folder}/decode-0-3", 3)
        self.last = WorkerExited(worker_id=DECODE, incarnation=1, exit_status=-9)

    def received(self, *frames: bytes) -> list[ToRouter]:
        """Return which of these frames come through."""

        async def scenario() -> list[ToRouter]:
            socket = self.context.socket(zmq.PUSH)
            socket.connect(self.endpoint)
            for frame in [*frames, encode_frame(self.last)]:
                await socket.send(frame)
            got = [await asyncio.wait_for(self.inbox.receive(), 10)]
            while got[-1] != self.last:
                got.append(await asyncio.wait_for(self.inbox.receive(), 10))
            socket.close(linger=0)
            self.bare_inbox.close()
            return got[:-1]

        return asyncio.run(scenario())

    def heartbeat(self, **status: Any) -> Heartbeat:
        return Heartbeat(role=Role.DECODE, address=self.address, status=msgspec.structs.replace(STATUS, **status))


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    room = Room(tmp_path)
    yield room
    room.context.destroy(linger=0)


def hashes(number: int) -> list[BlockHash]:
    return [BlockHash(index.to_bytes(16, "little")) for index in range(number)]


def test_what_makes_sense_comes_through(room: Room) -> None:
    change = CacheChange(sequence=1, stored=hashes(10), removed=[])
    messages = [
        room.heartbeat(),
        Tokens(worker_id=DECODE, incarnation=3, cache_change=change),
        Tokens(worker_id=DECODE, incarnation=3, tokens=[TokenEvent(RequestId("r"), 0, 0, 5)]),
    ]
    assert room.received(*map(encode_frame, messages)) == messages
    assert room.inbox.num_dropped == 0


def test_who_only_reads_for_other_machines_may_have_cached_what_it_has_read(room: Room) -> None:
    beat = room.heartbeat(num_blocks=0, num_free_blocks=0, num_cached_blocks=0, num_reading_blocks=10)
    held = Tokens(worker_id=DECODE, incarnation=3, cache_change=CacheChange(sequence=1, stored=hashes(10), removed=[]))
    too_much = Tokens(
        worker_id=DECODE, incarnation=3, cache_change=CacheChange(sequence=2, stored=hashes(11), removed=[])
    )
    assert room.received(*map(encode_frame, [beat, held, too_much])) == [beat, held]
    assert room.inbox.num_dropped == 1


def test_what_makes_none_is_dropped_and_counted(room: Room) -> None:
    change = CacheChange(sequence=1, stored=hashes(11), removed=[])
    beat = room.heartbeat()
    elsewhere = PeerAddress(DECODE, "tcp://example.com:80", 3)
    not_there = PeerAddress(DECODE, room.address.endpoint.replace("0-3", "0-4"), 4)
    stranger = PeerAddress(WorkerId("../decode-0"), room.address.endpoint, 3)
    senseless: list[Message] = [
        *[msgspec.structs.replace(beat, address=address) for address in (elsewhere, not_there, stranger)],
        msgspec.structs.replace(beat, role=Role.PREFILL),
        room.heartbeat(num_free_blocks=7),
        Tokens(worker_id=DECODE, incarnation=4),
        Tokens(worker_id=WorkerId("stranger"), incarnation=3),
        Tokens(worker_id=DECODE, incarnation=3, cache_change=change),
        WorkerExited(worker_id=WorkerId("stranger"), incarnation=1, exit_status=0),
    ]
    assert room.received(encode_frame(beat), *map(encode_frame, senseless)) == [beat]
    assert room.inbox.num_dropped == len(senseless)


def snapshot(piece: int, num_pieces: int, num_blocks: int) -> CacheSnapshot:
    return CacheSnapshot(
        worker_id=DECODE,
        incarnation=3,
        snapshot=1,
        sequence=1,
        piece=piece,
        num_pieces=num_pieces,
        stored=hashes(num_blocks),
    )


def test_snapshots_are_no_larger_than_the_cache(room: Room) -> None:
    most = MAX_SNAPSHOT_PIECE_BLOCKS
    beat = room.heartbeat(num_blocks=most + 1)
    whole = [snapshot(0, 1, 0), snapshot(0, 2, most), snapshot(1, 2, 1)]
    senseless = [
        snapshot(2, 2, 1),
        snapshot(0, 2, most - 1),
        snapshot(0, 3, most),
        snapshot(0, 2**53, most),
        msgspec.structs.replace(whole[0], incarnation=4),
        msgspec.structs.replace(whole[0], worker_id=WorkerId("stranger")),
    ]
    frames = [*map(encode_frame, [beat, *whole, *senseless]), encode_frame(snapshot(0, 1, most + 1))]
    assert room.received(*frames) == [beat, *whole]
    assert room.inbox.num_dropped == len(senseless) + 1


@pytest.mark.parametrize(
    "status",
    [
        {"num_blocks": -1},
        {"num_blocks": 2**63},
        {"cost_scale": math.nan},
        {"cost_scale": 0.0},
        {"prefill_share": 2.0},
        {"prefill_tokens_per_s": -1.0},
        {"prefill_tokens_per_s": math.inf},
        {"decode_step_s": math.nan},
        {"engine": "x" * 10_000},
        {"cores": [0] * 10_000},
    ],
    ids=str,
)
def test_absurd_heartbeats_do_not_decode(room: Room, status: dict[str, Any]) -> None:
    assert room.received(encode_frame(room.heartbeat(**status))) == []
    assert room.inbox.num_dropped == 1


@pytest.mark.parametrize("event", [["r", 0, -1, 5], ["r", 0, 0, -5], ["r", 0, 0, 5, -1], ["r", -1, 0, 5]], ids=str)
def test_absurd_tokens_do_not_decode(room: Room, event: list[Any]) -> None:
    tokens = {"type": "Tokens", "worker_id": DECODE, "incarnation": 3, "tokens": [event]}
    assert room.received(HEADER + msgspec.msgpack.encode(tokens)) == []


@pytest.mark.parametrize("length", [0, 15, 17])
def test_hashes_have_their_length(room: Room, length: int) -> None:
    change = CacheChange(sequence=1, stored=[BlockHash(b"x" * length)], removed=[])
    assert room.received(encode_frame(Tokens(worker_id=DECODE, incarnation=3, cache_change=change))) == []


@given(draw=st.randoms(use_true_random=False))
def test_no_message_that_decodes_breaks_the_router(make_cluster: "Callable[..., Cluster]", draw: Random) -> None:
    """Those of workers that are there come through; here they name none of the honest request's workers."""

    async def scenario(cluster: "Cluster") -> None:
        for worker in ("decode-0", "prefill-0"):
            cluster.heartbeat(worker)
        task = await cluster.start(cluster.request("r0"))
        decoder: FrameDecoder[ToRouter] = FrameDecoder(ToRouter, DroppedMessages("router"))
        known: Known = {
            "request_id": ["r0", "r1"],
            "worker_id": ["decode-77", "mixed-9"],
            "incarnation": [1, 2],
            "attempt": [9],
        }
        hostile = HostileMessages(ToRouter, draw, known)
        for _ in range(20):
            message = decoder.try_decode(hostile.frame())
            if message is not None and not isinstance(message, Heartbeat):
                cluster.router.on_message(message)
                cluster.router.status()
        cluster.tokens("prefill-0", ("r0", 0))
        cluster.tokens("decode-0", ("r0", 1))
        cluster.finished("decode-0", "r0", 2)
        parts = await task
        assert [token for part in parts if isinstance(part, TokensOut) for token in part.token_ids] == [100, 101]
        assert isinstance(parts[-1], EndOut)
        assert cluster.num_assigned() == {}

    cluster = make_cluster()
    cluster.run(scenario(cluster))
