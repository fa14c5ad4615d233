"""Frames and what they become: messages, what is left of them, or a count and a line in the log."""

import logging
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.hostile_frames import HostileMessages

from diptych.core.clock import VirtualClock
from diptych.core.ids import RequestId, WorkerId
from diptych.core.messages import (
    PROTOCOL_VERSION,
    Abort,
    GrantRemains,
    Remains,
    SubmitRemains,
    ToRouter,
    ToWorker,
)
from diptych.wire.dropped import DroppedMessages
from diptych.wire.frame import HEADER, MAGIC, FrameDecoder, encode_frame

ABORT = Abort(request_id=RequestId("r"))
ADDRESS = {"worker_id": "decode-0", "endpoint": "ipc:///x/decode-0-1", "incarnation": 1}


class Door:
    """A worker's decoder on a clock that stands still."""

    def __init__(self) -> None:
        self.clock = VirtualClock(1000.0)
        self.dropped = DroppedMessages("decode-0-1", self.clock)
        self.decoder: FrameDecoder[ToWorker | Remains] = FrameDecoder(ToWorker, self.dropped, Remains)


@pytest.fixture
def door() -> Door:
    return Door()


def test_a_message_comes_back(door: Door) -> None:
    frame = encode_frame(ABORT)
    assert frame.startswith(MAGIC + bytes([PROTOCOL_VERSION]))
    assert door.decoder.try_decode(frame) == ABORT
    assert door.dropped.num_dropped == 0


def test_another_version_is_dropped_and_told_once(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        frame = MAGIC + bytes([PROTOCOL_VERSION + 1]) + encode_frame(ABORT)[len(HEADER) :]
        assert door.decoder.try_decode(frame) is None
        door.clock.sleep(10.0)
    assert door.dropped.num_dropped == 3
    assert caplog.messages == [
        f"decode-0-1 dropped a message: its sender speaks protocol version {PROTOCOL_VERSION + 1}, "
        f"this process {PROTOCOL_VERSION}; end the server and start all of it from the same release"
    ]


def test_a_flood_of_garbage_gets_a_line_a_second(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        for _ in range(1000):
            assert door.decoder.try_decode(b"garbage") is None
        door.clock.sleep(1.0)
    assert door.dropped.num_dropped == 3000
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "decode-0-1 dropped a message",
        "decode-0-1 dropped 1000 messages, the last of them",
        "decode-0-1 dropped 1000 messages, the last of them",
    ]


def test_what_a_stranger_sends_does_not_fill_the_log(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    door.decoder.try_decode(HEADER + msgspec.msgpack.encode({"type": "\n" + "x" * 100_000}))
    (message,) = caplog.messages
    assert len(message) < 400
    assert "\n" not in message


def test_what_is_left_of_a_malformed_submit_names_its_request(door: Door) -> None:
    submit = {"type": "Submit", "request": {"request_id": "r", "prompt_token_ids": [-1]}, "attempt": 2}
    left = door.decoder.try_decode(HEADER + msgspec.msgpack.encode(submit))
    assert isinstance(left, SubmitRemains)
    assert (left.request.request_id, left.attempt) == ("r", 2)
    assert door.dropped.num_dropped == 1
    assert door.decoder.try_decode(HEADER + msgspec.msgpack.encode(submit | {"request": 5})) is None


def test_what_is_left_of_a_malformed_grant_names_its_epoch(door: Door) -> None:
    grant = {"type": "Grant", "request_id": "r", "epoch": 7, "decode": ADDRESS, "block_table": ["x"]}
    left = door.decoder.try_decode(HEADER + msgspec.msgpack.encode(grant))
    assert isinstance(left, GrantRemains)
    assert (left.epoch, left.decode.worker_id) == (7, WorkerId("decode-0"))


@given(st.binary(max_size=300), st.booleans())
def test_random_bytes(frame: bytes, has_header: bool) -> None:
    door = Door()
    message = door.decoder.try_decode(HEADER + frame if has_header else frame)
    assert message is None or isinstance(message, ToWorker | Remains)


@given(st.randoms(use_true_random=False))
def test_random_messages_and_damaged_ones(draw: Random) -> None:
    logging.disable(logging.CRITICAL)
    for kinds in (ToWorker, ToRouter):
        door = Door()
        decoder: FrameDecoder[ToWorker | ToRouter] = FrameDecoder(kinds, door.dropped)
        frames = [HostileMessages(kinds, draw, {}).frame() for _ in range(5)]
        messages = [decoder.try_decode(frame) for frame in frames]
        assert sum(message is None for message in messages) == door.dropped.num_dropped
    logging.disable(logging.NOTSET)
