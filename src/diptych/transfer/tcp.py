"""The connection between two workers of different nodes: a plain TCP socket, for frames and for the bytes of blocks.

A frame is its length (4 bytes, most significant first) and a msgpack map. Blocks go as they are, from the pages of one
segment into the pages of the other, without any copy of ours on either side. Every wait for the peer ends after
`IO_TIMEOUT_S` without a byte, but for the wait for the next order: there the kernel asks whether the peer is alive.
"""

import socket
import struct
from collections.abc import Callable, Sequence

import msgspec

from diptych.core.errors import TransferError
from diptych.transfer.frames import MAX_FRAME_BYTES, AnyFrame, Frame

IO_TIMEOUT_S = 5.0
KEEPALIVE_IDLE_S = 5
KEEPALIVE_PROBES = 3
MAX_PARTS = 512
"""Runs of bytes in one system call; Linux takes up to 1,024."""
DISCARD_BYTES = 2**18
"""At a time."""

_LENGTH = struct.Struct(">I")
_decoder: "msgspec.msgpack.Decoder[AnyFrame]" = msgspec.msgpack.Decoder(AnyFrame)
_encoder = msgspec.msgpack.Encoder()


class Connection:
    """One connection between two workers. Used by one thread; `shutdown` may be called by any."""

    def __init__(self, endpoint: socket.socket) -> None:
        """Take over a connected socket."""
        endpoint.settimeout(IO_TIMEOUT_S)
        endpoint.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        endpoint.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
        endpoint.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        endpoint.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
        self._socket = endpoint

    @classmethod
    def open(cls, endpoint: str) -> "Connection":
        """Connect to `host:port`.

        Raises: TransferError.
        """
        host, _, port = endpoint.rpartition(":")
        try:
            return cls(socket.create_connection((host.strip("[]"), int(port)), IO_TIMEOUT_S))
        except (OSError, ValueError) as error:
            raise TransferError(f"cannot connect to {endpoint}: {error}") from None

    def send(self, frame: Frame, parts: Sequence[memoryview] = ()) -> None:
        """Send a frame and, behind it, runs of bytes as they are.

        Raises: TransferError.
        """
        body = _encoder.encode(frame)
        if len(body) > MAX_FRAME_BYTES:
            raise AssertionError(f"a frame of {len(body)} bytes")
        self._send_all([memoryview(_LENGTH.pack(len(body)) + body)])
        self._send_all(parts)

    def send_parts(self, parts: Sequence[memoryview]) -> None:
        """Send runs of bytes as they are.

        Raises: TransferError.
        """
        self._send_all(parts)

    def _send_all(self, parts: Sequence[memoryview]) -> None:
        waiting = [part.cast("B") for part in parts]
        first = 0
        while first < len(waiting):
            try:
                num_sent = self._socket.sendmsg(waiting[first : first + MAX_PARTS])
            except OSError as error:
                raise TransferError(f"the peer takes nothing: {error}") from None
            while first < len(waiting) and num_sent >= len(waiting[first]):
                num_sent -= len(waiting[first])
                first += 1
            if num_sent:
                waiting[first] = waiting[first][num_sent:]

    def receive(self, *, may_be_idle: bool = False) -> AnyFrame:
        """Return the next frame; `may_be_idle`: wait for it for as long as the peer is there.

        Raises: TransferError if there is none, or it makes no sense.
        """
        head = bytearray(_LENGTH.size)
        if may_be_idle:
            self._socket.settimeout(None)
            try:
                self._receive_into(memoryview(head)[:1])
            finally:
                self._socket.settimeout(IO_TIMEOUT_S)
            self._receive_into(memoryview(head)[1:])
        else:
            self._receive_into(memoryview(head))
        (num_bytes,) = _LENGTH.unpack(head)
        if num_bytes > MAX_FRAME_BYTES:
            raise TransferError(f"the peer announces a frame of {num_bytes} bytes")
        body = bytearray(num_bytes)
        self._receive_into(memoryview(body))
        try:
            return _decoder.decode(body)
        except msgspec.MsgspecError as error:
            raise TransferError(f"the peer sends what is no frame: {error}") from None

    def receive_parts(self, parts: Sequence[memoryview], may_go_on: Callable[[], bool]) -> None:
        """Receive into runs of bytes, as long as that may go on, which is asked before each of them.

        Raises: TransferError, after which this connection is of no use.
        """
        for part in parts:
            if not may_go_on():
                raise TransferError("the grant was closed meanwhile")
            self._receive_into(part.cast("B"))

    def discard(self, num_bytes: int) -> None:
        """Receive so many bytes and forget them.

        Raises: TransferError, after which this connection is of no use.
        """
        scratch = memoryview(bytearray(min(num_bytes, DISCARD_BYTES)))
        while num_bytes:
            part = scratch[:num_bytes]
            self._receive_into(part)
            num_bytes -= len(part)

    def _receive_into(self, part: memoryview) -> None:
        while part:
            try:
                num_bytes = self._socket.recv_into(part)
            except OSError as error:
                raise TransferError(f"nothing comes from the peer: {error}") from None
            if not num_bytes:
                raise TransferError("the peer has hung up")
            part = part[num_bytes:]

    def wait(self, timeout_s: float) -> bool:
        """Wait until something has come, or the peer has hung up; False if that takes longer."""
        self._socket.settimeout(timeout_s)
        try:
            return self._socket.recv(1, socket.MSG_PEEK) is not None
        except TimeoutError:
            return False
        except OSError:
            return True  # the next `receive` says what
        finally:
            self._socket.settimeout(IO_TIMEOUT_S)

    def shutdown(self) -> None:
        """End it at once: whoever waits for the peer stops waiting."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def close(self) -> None:
        """Let go of the socket; for its own thread."""
        self._socket.close()
