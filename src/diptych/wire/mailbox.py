"""An inbox a process, and letters to the inboxes of others, over ZeroMQ PUSH and PULL.

Messages from one sender arrive in order; messages from two senders may arrive in any. Both ends are bounded: a peer
that stops reading costs its senders a `PeerUnreachableError`, never memory. Bytes that are no message of the expected
kinds are dropped and counted, whoever sent them.
"""

import contextlib
import logging
from collections.abc import Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

import msgspec
import zmq
import zmq.asyncio

from diptych.core.errors import PeerUnreachableError
from diptych.core.messages import Message, PeerAddress
from diptych.wire.wake import Wake

HIGH_WATER_MARK_MESSAGES = 10_000
MAX_MESSAGE_BYTES = 64 * 2**20

log = logging.getLogger(__name__)
Incoming = TypeVar("Incoming", bound=Message)


def _pull_socket(socket: zmq.Socket[bytes] | zmq.asyncio.Socket, endpoint: str) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK_MESSAGES)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    socket.bind(endpoint)


class _Decoder(Generic[Incoming]):
    """Frames to messages; drops and counts what is none."""

    def __init__(self, kinds: object) -> None:
        self._decoder: msgspec.msgpack.Decoder[Incoming] = msgspec.msgpack.Decoder(kinds)
        self.num_dropped = 0

    def try_decode(self, frame: bytes) -> Incoming | None:
        """Return the message, or None for bytes that are none."""
        try:
            return self._decoder.decode(frame)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self.num_dropped += 1
            log.warning("dropped a frame of %d bytes that is no message for us: %s", len(frame), error)
            return None


class Inbox(Generic[Incoming]):
    """The receiving end for a loop that blocks (a worker). Owned by one thread."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, kinds: object) -> None:
        self._socket = context.socket(zmq.PULL)
        _pull_socket(self._socket, endpoint)
        self._decoder: _Decoder[Incoming] = _Decoder(kinds)

    def receive(self, timeout_s: float, wake: Wake) -> list[Incoming]:
        """Return all messages that are here; if none, wait up to `timeout_s` for one or for `wake`.

        `wake` is lowered.
        """
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(wake.fileno(), zmq.POLLIN)
        poller.poll(round(timeout_s * 1000))
        wake.lower()
        return list(self._drain())

    def _drain(self) -> Iterator[Incoming]:
        for _ in range(HIGH_WATER_MARK_MESSAGES):
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            message = self._decoder.try_decode(frame)
            if message is not None:
                yield message

    def close(self) -> None:
        """Stop receiving; what has not been received is lost."""
        self._socket.close()


class AsyncInbox(Generic[Incoming]):
    """The receiving end for an asyncio loop (the router)."""

    def __init__(self, context: zmq.asyncio.Context, endpoint: str, kinds: object) -> None:
        self._socket = context.socket(zmq.PULL)
        _pull_socket(self._socket, endpoint)
        self._decoder: _Decoder[Incoming] = _Decoder(kinds)

    async def receive(self) -> Incoming:
        """Wait for the next message."""
        while True:
            message = self._decoder.try_decode(await self._socket.recv())
            if message is not None:
                return message

    def close(self) -> None:
        """Stop receiving; what has not been received is lost."""
        self._socket.close()


class Outbox:
    """Letters to any number of peers; connects at the first letter. Owned by one thread. Sending never waits."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._context = context
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        self._encoder = msgspec.msgpack.Encoder()

    def send(self, endpoint: str, message: Message) -> None:
        """Queue `message` for the inbox at `endpoint`.

        Raises: PeerUnreachableError if that inbox has not read its last `HIGH_WATER_MARK_MESSAGES` messages.
        """
        socket = self._sockets.get(endpoint)
        if socket is None:
            socket = self._context.socket(zmq.PUSH)
            socket.setsockopt(zmq.LINGER, 1000)
            socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK_MESSAGES)
            socket.connect(endpoint)
            self._sockets[endpoint] = socket
        try:
            socket.send(self._encoder.encode(message), zmq.NOBLOCK)
        except zmq.Again:
            raise PeerUnreachableError(f"{endpoint} does not read its messages") from None

    def forget(self, peer: PeerAddress) -> None:
        """Close the connection to a peer that is gone; queued letters to it are dropped."""
        socket = self._sockets.pop(peer.endpoint, None)
        if socket is not None:
            socket.close(linger=0)

    def close(self) -> None:
        """Close all connections; letters on their way have a second to leave."""
        for socket in self._sockets.values():
            socket.close()
        self._sockets.clear()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        with contextlib.suppress(zmq.ZMQError):
            self.close()
