"""The one connection between a machine that joins and the router's: TCP, encrypted and authenticated by CURVE.

The router's end (`RouterBorder`) listens; machines connect (`NodeBorder`), so only one port of one machine must be
reachable. Who has no key that the router knows, or does not know the router's, or speaks something else, gets no
further than ZeroMQ's handshake. Sending never waits; what cannot be queued is said, and ends the session that it was
for, since whoever sent it would wait for an answer (core/node_messages.py).
"""

import asyncio
import logging
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import zmq
import zmq.asyncio
from zmq.auth.asyncio import AsyncioAuthenticator

from diptych.core.bounds import MAX_PORT
from diptych.core.errors import ConfigError, LaunchError, PeerUnreachableError
from diptych.core.ids import RouterId
from diptych.core.node_messages import FromNode, ToNode
from diptych.wire.cluster_keys import KeyPair, NodeKeys, read_allowed
from diptych.wire.dropped import DroppedMessages
from diptych.wire.frame import FrameDecoder, encode_frame
from diptych.wire.mailbox import HIGH_WATER_MARK_MESSAGES, MAX_FRAMES_AT_ONCE, MAX_MESSAGE_BYTES

HANDSHAKE_TIMEOUT_MS = 3_000
"""A stranger that connects and says nothing, or nonsense, is cut after it."""
PING_INTERVAL_MS, PING_TIMEOUT_MS = 2_000, 15_000
"""ZeroMQ's own: a connection whose other end is gone for so long is closed, so that it does not stay half open."""
RECONNECT_MS, RECONNECT_MAX_MS = 100, 1_000
REFUSED_AFTER_S = 5.0
"""Without a connection for so long, a new one is begun: ZeroMQ does not try again where its key was refused."""
USER_ID, PEER_ADDRESS = "User-Id", "Peer-Address"
IPV4_IN_IPV6 = "::ffff:"
"""Before the address of who comes by IPv4: one socket listens for both."""

log = logging.getLogger(__name__)


class HostPort(NamedTuple):
    """Where to listen, or to connect to."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, setting: str) -> "HostPort":
        """Read `HOST:PORT` or `[IPV6]:PORT`. Raises: ConfigError that names the setting."""
        host, colon, port = text.rpartition(":")
        if not colon or not host or not port.isdecimal() or not 0 < int(port) <= MAX_PORT:
            raise ConfigError(f"{setting}: {text!r} is not HOST:PORT, such as 10.0.0.1:7070 or [fd00::1]:7070")
        return cls(host.removeprefix("[").removesuffix("]"), int(port))

    def of_router(self, router: RouterId) -> "HostPort":
        """Return where this router is, if the first one is here: the others have the ports after it."""
        return HostPort(self.host, self.port + router)

    @property
    def endpoint(self) -> str:
        """Return it as ZeroMQ wants it."""
        return f"tcp://[{self.host}]:{self.port}" if ":" in self.host else f"tcp://{self.host}:{self.port}"

    def own_address(self) -> str:
        """Return the address that this machine has for those that are there. Raises: OSError if no way leads there."""
        ((family, _, _, _, address), *_) = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_DGRAM)
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing
            return str(probe.getsockname()[0])

    def __str__(self) -> str:
        """Return it as people write it."""
        return self.endpoint.removeprefix("tcp://")


def _prepare(socket: zmq.Socket[bytes] | zmq.asyncio.Socket) -> None:
    socket.setsockopt(zmq.LINGER, 500)
    socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK_MESSAGES)
    socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK_MESSAGES)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    socket.setsockopt(zmq.IPV6, 1)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_TIMEOUT_MS)
    socket.setsockopt(zmq.HEARTBEAT_IVL, PING_INTERVAL_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, PING_TIMEOUT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TTL, PING_TIMEOUT_MS)


class Arrival(NamedTuple):
    """A message from a machine."""

    connection: bytes
    """Names the connection; a new one has another name."""
    key_name: str
    """Of the key that it was opened with."""
    ip: str
    """Where it comes from."""
    message: FromNode


class RouterBorder:
    """The router's end. Owned by the event loop's thread."""

    def __init__(self, listen: HostPort, own: KeyPair, allowed_folder: Path, dropped: DroppedMessages) -> None:
        """Listen. Raises: LaunchError if that address cannot be had; ConfigError if keys cannot be read."""
        self.dropped = dropped
        self._allowed_folder = allowed_folder
        self._allowed: Mapping[bytes, str] = read_allowed(allowed_folder)
        self._decoder: FrameDecoder[FromNode] = FrameDecoder(FromNode, dropped)
        self._context = zmq.asyncio.Context()
        self._authenticator = AsyncioAuthenticator(self._context)
        self._authenticator.configure_curve_callback(credentials_provider=self)
        self._authenticator.start()
        self._socket = self._context.socket(zmq.ROUTER)
        _prepare(self._socket)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.CURVE_SERVER, 1)
        self._socket.setsockopt(zmq.CURVE_PUBLICKEY, own.public)
        self._socket.setsockopt(zmq.CURVE_SECRETKEY, own.secret)
        try:
            self._socket.bind(listen.endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise LaunchError(f"--cluster-listen: cannot listen on {listen} ({error.strerror})") from None

    def callback(self, domain: str, key: bytes) -> bool:
        """Tell whether who has that key may connect (called by the authenticator)."""
        del domain
        is_allowed = key in self._allowed
        if not is_allowed:
            self.dropped.add("a connection to the cluster's port with a key that is not allowed")
        return is_allowed

    def reread_keys(self) -> None:
        """Let in who has got a key meanwhile; whose key is gone is not heard any more, on open connections too."""
        try:
            self._allowed = read_allowed(self._allowed_folder)
        except ConfigError as error:
            log.error("the keys of before stay: %s", error)  # noqa: TRY400  no traceback wanted

    async def receive(self) -> Arrival:
        """Wait for the next message that is one."""
        while True:
            frames = await self._socket.recv_multipart(copy=False)
            if len(frames) == 2:  # noqa: PLR2004  connection and message
                message = self._decoder.try_decode(frames[1].bytes)
                if message is not None:
                    key_name = self._allowed.get(str(frames[1].get(USER_ID)).encode())
                    if key_name is not None:
                        ip = str(frames[1].get(PEER_ADDRESS)).removeprefix(IPV4_IN_IPV6)
                        return Arrival(frames[0].bytes, key_name, ip, message)
                    self.dropped.add("it came with a key that was allowed and is not any more")
            else:
                self.dropped.add(f"{len(frames)} parts that are no message of Diptych's")
            await asyncio.sleep(0)  # a flood of nonsense must let others run

    def send(self, connection: bytes, message: ToNode) -> None:
        """Queue a message. Raises: PeerUnreachableError if it was not queued."""
        # With NOBLOCK the outcome is there at once.
        queued = self._socket.send_multipart([connection, encode_frame(message)], zmq.NOBLOCK)
        assert isinstance(queued, asyncio.Future)
        try:
            queued.result()
        except (zmq.ZMQError, asyncio.InvalidStateError) as error:
            raise PeerUnreachableError(f"the machine is out of reach: {error}") from None

    def close(self) -> None:
        """Stop listening and cut all connections."""
        self._authenticator.stop()
        self._socket.close(linger=500)
        self._context.term()


class NodeBorder:
    """A joining machine's end. Owned by one thread at a time. It connects, and connects again, by itself."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], router: HostPort, keys: NodeKeys, dropped: DroppedMessages
    ) -> None:
        self._context = context
        self._router = router
        self._keys = keys
        self._decoder: FrameDecoder[ToNode] = FrameDecoder(ToNode, dropped)
        self.socket = self._connected()
        self._begun_s = time.monotonic()

    def _connected(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        _prepare(socket)
        socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing is queued for a connection that is yet to come
        socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        socket.setsockopt(zmq.CONNECT_TIMEOUT, HANDSHAKE_TIMEOUT_MS)
        socket.setsockopt(zmq.CURVE_SERVERKEY, self._keys.head_public)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self._keys.own.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._keys.own.secret)
        socket.connect(self._router.endpoint)
        return socket

    def reconnect(self) -> None:
        """Begin a new connection: what was queued in the old one, in either direction, is lost."""
        self.socket.close(linger=0)
        self.socket = self._connected()
        self._begun_s = time.monotonic()

    def send(self, message: FromNode) -> None:
        """Queue a message. Raises: PeerUnreachableError if there is no connection, or it is full."""
        try:
            self.socket.send(encode_frame(message), zmq.NOBLOCK)
        except zmq.Again:
            if time.monotonic() > self._begun_s + REFUSED_AFTER_S:
                self.reconnect()
            raise PeerUnreachableError(f"no connection to {self._router}") from None

    def receive_waiting(self) -> list[ToNode]:
        """Return the messages that are here (not all, if they are many)."""
        messages: list[ToNode] = []
        for _ in range(MAX_FRAMES_AT_ONCE):
            try:
                frame = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            message = self._decoder.try_decode(frame)
            if message is not None:
                messages.append(message)
        return messages

    def close(self) -> None:
        """Close the connection; what was queued has half a second to leave."""
        self.socket.close()
