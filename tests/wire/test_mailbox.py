"""Inboxes and outboxes over real sockets: order, bounds, and strangers who send anything at all."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
import zmq.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diptych.core.errors import PeerUnreachableError
from diptych.core.ids import RequestId, WorkerId
from diptych.core.messages import Abort, Message, PeerAddress, PeerGone, Tokens, ToRouter, ToWorker
from diptych.wire import mailbox
from diptych.wire.frame import HEADER, encode_frame
from diptych.wire.mailbox import AsyncInbox, Inbox, Outbox
from diptych.wire.wake import Wake

PATIENCE_S = 10.0
CLOSE_S = 0.5
"""ZeroMQ closes a socket on a thread of its own, a moment later."""
Context = zmq.Context[zmq.Socket[bytes]]


class Post:
    """One inbox and the means to write to it."""

    def __init__(self, folder: Path) -> None:
        self.context: Context = zmq.Context()
        self.endpoint = f"ipc://{folder}/inbox"
        self.inbox: Inbox[ToWorker] = Inbox(self.context, self.endpoint, ToWorker)
        self.outbox = Outbox(self.context)
        self.wake = Wake()

    def receive(self, num_messages: int) -> list[ToWorker]:
        """Wait until this many messages are here."""
        messages: list[ToWorker] = []
        while len(messages) < num_messages:
            came = self.inbox.receive(PATIENCE_S, self.wake)
            assert came or self.inbox.num_dropped, "nothing came"
            messages += came
        return messages

    def stranger(self) -> zmq.Socket[bytes]:
        socket = self.context.socket(zmq.PUSH)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(self.endpoint)
        return socket

    def close(self) -> None:
        self.outbox.close()
        self.inbox.close()
        self.wake.close()
        self.context.destroy(linger=0)


@pytest.fixture
def post(tmp_path: Path) -> Iterator[Post]:
    with contextlib.closing(Post(tmp_path)) as post:
        yield post


def abort(number: int) -> Abort:
    return Abort(request_id=RequestId(str(number)))


def test_messages_of_one_sender_arrive_in_order(post: Post) -> None:
    for number in range(2000):
        post.outbox.send(post.endpoint, abort(number))

    assert post.receive(2000) == [abort(number) for number in range(2000)]


def test_waiting_ends_by_a_wake_and_in_time(post: Post) -> None:
    assert post.inbox.receive(0.0, post.wake) == []
    post.wake.raise_flag()
    post.wake.raise_flag()
    assert post.inbox.receive(PATIENCE_S, post.wake) == []
    begin_s = time.monotonic()
    assert post.inbox.receive(0.05, post.wake) == [], "the flag was lowered"
    assert time.monotonic() - begin_s > 0.04


def test_frames_that_are_no_messages_are_dropped_and_counted(post: Post, caplog: pytest.LogCaptureFixture) -> None:
    stranger = post.stranger()
    not_for_workers = encode_frame(Tokens(worker_id=WorkerId("w"), incarnation=1))
    bad = [b"", b"\xff" * 100, b"\x93" * 100_000, b"\xdb\xff\xff\xff\xff", b"\xa2\xc3\x28"]
    bad += [HEADER + frame for frame in bad] + [not_for_workers]
    with caplog.at_level(logging.CRITICAL):
        for frame in bad:
            stranger.send(frame)
        stranger.send(encode_frame(abort(1)))
        assert post.receive(1) == [abort(1)]

    assert post.inbox.num_dropped == len(bad)
    stranger.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(
    st.lists(
        st.binary(max_size=200) | st.binary(max_size=40).map(lambda tail: HEADER + b"\x82\xa4type\xa5Abort" + tail)
    )
)
def test_random_bytes_never_stop_an_inbox(post: Post, frames: list[bytes]) -> None:
    stranger = post.stranger()
    num_before = post.inbox.num_dropped
    for frame in frames:
        stranger.send(frame)
    stranger.send(encode_frame(PeerGone(worker_id=WorkerId("last"), incarnation=1)))

    messages = post.receive(1)
    while messages[-1] != PeerGone(worker_id=WorkerId("last"), incarnation=1):
        messages += post.receive(1)

    assert len(messages) - 1 + post.inbox.num_dropped - num_before == len(frames)
    stranger.close()


def test_an_oversized_frame_costs_its_sender_the_connection_and_nobody_else(
    post: Post, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mailbox, "MAX_MESSAGE_BYTES", 1000)
    endpoint = f"ipc://{tmp_path}/small"
    inbox: Inbox[ToWorker] = Inbox(post.context, endpoint, ToWorker)
    stranger = post.context.socket(zmq.PUSH)
    stranger.connect(endpoint)
    stranger.send(b"x" * 100_000)
    post.outbox.send(endpoint, abort(1))
    assert inbox.receive(PATIENCE_S, post.wake) == [abort(1)]

    # The stranger is let in again: what it sends is here at last, so the large frame before it would be, too.
    for _ in range(1000):
        stranger.send(encode_frame(abort(2)))
        if came := inbox.receive(0.01, post.wake):
            break
    assert set(came) == {abort(2)}
    assert inbox.num_dropped == 0
    stranger.close(linger=0)
    inbox.close()


def test_a_peer_that_reads_nothing_costs_an_error_and_no_memory(
    post: Post, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mailbox, "HIGH_WATER_MARK_MESSAGES", 10)
    endpoint = f"ipc://{tmp_path}/deaf"
    deaf: Inbox[ToWorker] = Inbox(post.context, endpoint, ToWorker)
    outbox = Outbox(post.context)
    letter = Abort(request_id=RequestId("x" * 100_000))  # large, so that the kernel's buffers fill up soon

    num_sent = 0
    with pytest.raises(PeerUnreachableError, match="does not read its messages"):
        for _ in range(1000):
            outbox.send(endpoint, letter)
            num_sent += 1

    assert 10 <= num_sent < 1000
    post.outbox.send(post.endpoint, abort(1))
    assert post.receive(1) == [abort(1)], "other peers are reached"
    outbox.close()
    deaf.close()


def test_a_peer_that_is_not_there_yet_gets_its_letters_later(post: Post, tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/late"
    post.outbox.send(endpoint, abort(1))
    late: Inbox[ToWorker] = Inbox(post.context, endpoint, ToWorker)

    assert late.receive(PATIENCE_S, post.wake) == [abort(1)]
    late.close()


def test_forgetting_a_peer_drops_what_waits_for_it_and_lets_its_successor_be_reached(
    post: Post, tmp_path: Path
) -> None:
    endpoint = f"ipc://{tmp_path}/gone"
    peer = PeerAddress(WorkerId("w"), endpoint, 1)
    post.outbox.send(endpoint, abort(1))
    post.outbox.forget(peer)
    post.outbox.forget(peer)
    time.sleep(CLOSE_S)
    successor: Inbox[ToWorker] = Inbox(post.context, endpoint, ToWorker)
    post.outbox.send(endpoint, abort(2))

    assert successor.receive(PATIENCE_S, post.wake) == [abort(2)]
    successor.close()


def test_the_asynchronous_inbox_drops_strangers_words_too(tmp_path: Path) -> None:
    async def scenario() -> None:
        plain: Context = zmq.Context()
        inbox: AsyncInbox[ToRouter] = AsyncInbox(zmq.asyncio.Context(plain), f"ipc://{tmp_path}/router", ToRouter)
        with Outbox(plain) as outbox:
            message: Message = Tokens(worker_id=WorkerId("w"), incarnation=1)
            outbox.send(f"ipc://{tmp_path}/router", abort(1))  # no message for a router
            outbox.send(f"ipc://{tmp_path}/router", message)
            assert await asyncio.wait_for(inbox.receive(), PATIENCE_S) == message
            assert inbox.num_dropped == 1
        inbox.close()
        plain.term()

    asyncio.run(scenario())
