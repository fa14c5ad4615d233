"""An inbox a process, and letters to the inboxes of others, over ZeroMQ PUSH and PULL.

Messages from one sender arrive in order; messages from two senders may arrive in any. Both ends are bounded: a peer
that stops reading costs its senders a `PeerUnreachableError`, never memory. Bytes that are no message of the expected
kinds are dropped and counted, whoever sent them, and never keep a loop from its other work.

In a cluster, letters to other machines go to this machine's border, which passes them on (wire/border.py).
"""

import asyncio
import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

import zmq
import zmq.asyncio

from diptych.core.addresses import BORDER_NAME, split_node_endpoint
from diptych.core.errors import PeerUnreachableError
from diptych.core.ids import NO_NODE, NodeId
from diptych.core.messages import Letter, Message, PeerAddress
from diptych.wire.dropped import DroppedMessages
from diptych.wire.frame import FrameDecoder, encode_frame
from diptych.wire.wake import Wake

HIGH_WATER_MARK_MESSAGES = 10_000
MAX_FRAMES_AT_ONCE = 1_000
"""Read before the loop goes on with its other work."""
MAX_MESSAGE_BYTES = 64 * 2**20

Incoming = TypeVar("Incoming", bound=Message)


def _dropped_at(endpoint: str) -> DroppedMessages:
    return DroppedMessages(endpoint.rpartition("/")[2])


def _pull_socket(socket: zmq.Socket[bytes] | zmq.asyncio.Socket, endpoint: str) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK_MESSAGES)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    socket.bind(endpoint)


class Inbox(Generic[Incoming]):
    """The receiving end for a loop that blocks (a worker). Owned by one thread."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, kinds: object, remains: object = None
    ) -> None:
        """`kinds`: the union of types that may arrive; `remains`: see `FrameDecoder`."""
        self.socket = context.socket(zmq.PULL)
        """For pollers."""
        _pull_socket(self.socket, endpoint)
        self.dropped = _dropped_at(endpoint)
        self._decoder: FrameDecoder[Incoming] = FrameDecoder(kinds, self.dropped, remains)

    @property
    def num_dropped(self) -> int:
        """Messages that were none, or made no sense."""
        return self.dropped.num_dropped

    def receive(self, timeout_s: float, wake: Wake) -> list[Incoming]:
        """Return the messages that are here (not all, if they are many); if none, wait for one or for `wake`.

        It waits for `timeout_s` at most. `wake` is lowered.
        """
        poller = zmq.Poller()
        poller.register(self.socket, zmq.POLLIN)
        poller.register(wake.fileno(), zmq.POLLIN)
        poller.poll(round(timeout_s * 1000))
        wake.lower()
        return self.receive_waiting()

    def receive_waiting(self) -> list[Incoming]:
        """Return the messages that are here (not all, if they are many)."""
        return list(self._drain())

    def _drain(self) -> Iterator[Incoming]:
        for _ in range(MAX_FRAMES_AT_ONCE):
            try:
                frame = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            message = self._decoder.try_decode(frame)
            if message is not None:
                yield message

    def close(self) -> None:
        """Stop receiving; what has not been received is lost."""
        self.socket.close()


class AsyncInbox(Generic[Incoming]):
    """The receiving end for an asyncio loop (the router)."""

    def __init__(self, context: zmq.asyncio.Context, endpoint: str, kinds: object) -> None:
        self._socket = context.socket(zmq.PULL)
        _pull_socket(self._socket, endpoint)
        self.dropped = _dropped_at(endpoint)
        self._decoder: FrameDecoder[Incoming] = FrameDecoder(kinds, self.dropped)

    @property
    def num_dropped(self) -> int:
        """Messages that were none, or made no sense."""
        return self.dropped.num_dropped

    async def receive(self) -> Incoming:
        """Wait for the next message."""
        while True:
            message = self._decoder.try_decode(await self._socket.recv())
            if message is not None:
                return message
            # What is here already is received without ever suspending: a flood of nonsense must let others run.
            await asyncio.sleep(0)

    def close(self) -> None:
        """Stop receiving; what has not been received is lost."""
        self._socket.close()


class Outbox:
    """Letters to any number of peers; connects at the first letter. Owned by one thread. Sending never waits."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        directory: str = "",
        node: NodeId = NO_NODE,
    ) -> None:
        """`directory`, `node`: in a cluster, where this machine's inboxes are (`ipc://...`), and what it is called."""
        self._context = context
        self._directory = directory
        self._node = node
        self._sockets: dict[str, zmq.Socket[bytes]] = {}

    def send(self, endpoint: str, message: Message) -> None:
        """Queue `message` for the inbox at `endpoint`.

        Raises: PeerUnreachableError if that inbox has not read its last `HIGH_WATER_MARK_MESSAGES` messages, or if
        there can be none.
        """
        self.send_frame(endpoint, encode_frame(message))

    def send_frame(self, endpoint: str, frame: bytes) -> None:
        """Queue a message that is encoded already. Raises: as `send`."""
        address = split_node_endpoint(endpoint) if self._node else None
        if address is not None and address[0] != self._node:
            self._queue(f"{self._directory}/{BORDER_NAME}", encode_frame(Letter(to=endpoint, frame=frame)))
        elif address is not None:
            self._queue(f"{self._directory}/{address[1]}", frame)
        else:
            self._queue(endpoint, frame)

    def _queue(self, endpoint: str, frame: bytes) -> None:
        socket = self._sockets.get(endpoint) or self._connect(endpoint)
        try:
            socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            raise PeerUnreachableError(f"{endpoint} does not read its messages") from None

    def _connect(self, endpoint: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.PUSH)
        socket.setsockopt(zmq.LINGER, 1000)
        socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK_MESSAGES)
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            socket.close()
            raise PeerUnreachableError(f"{endpoint!r} is no inbox's address: {error}") from None
        self._sockets[endpoint] = socket
        return socket

    def forget(self, peer: PeerAddress) -> None:
        """Close the connection to a peer that is gone; queued letters to it are dropped."""
        address = split_node_endpoint(peer.endpoint) if self._node else None
        if address is not None and address[0] != self._node:
            return  # the way to other machines is for all of their workers
        endpoint = peer.endpoint if address is None else f"{self._directory}/{address[1]}"
        socket = self._sockets.pop(endpoint, None)
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
