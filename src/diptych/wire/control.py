"""The socket between the launcher and each process it started: a few typed lines, and a lifeline.

The kernel closes the launcher's end when it dies, however it dies; `end_process_with_launcher` turns that into the end
of this process, so that kill -9 of the launcher leaves nothing behind.
"""

import contextlib
import logging
import os
import select
import socket
import threading
from typing import Generic, TypeVar

import msgspec

from diptych.core.errors import LaunchError, ProtocolError

Incoming = TypeVar("Incoming", bound=msgspec.Struct)
MAX_LINE_BYTES = 16 * 2**20
EXIT_STATUS_ORPHANED = 70
log = logging.getLogger(__name__)


class ControlChannel(Generic[Incoming]):
    """One end of the socket. `kinds` is the union of message types that may arrive."""

    def __init__(self, connection: socket.socket, kinds: object) -> None:
        self._connection = connection
        self._decoder: msgspec.json.Decoder[Incoming] = msgspec.json.Decoder(kinds)
        self._buffer = b""
        self.has_ended = False
        """Whether the peer has closed its end, as far as `receive_waiting` has seen."""

    @classmethod
    def of_descriptor(cls, descriptor: int, kinds: object) -> "ControlChannel[Incoming]":
        """Open the end that the launcher passed on as a file descriptor."""
        return cls(socket.socket(fileno=descriptor), kinds)

    def fileno(self) -> int:
        """Return the descriptor, for select."""
        return self._connection.fileno()

    def send(self, message: msgspec.Struct) -> None:
        """Send a line. A peer that is gone is no error here: its end is noticed where it is waited for."""
        try:
            self._connection.sendall(msgspec.json.encode(message) + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            return

    def try_send(self, message: msgspec.Struct) -> bool:
        """Send a short line if that needs no waiting; tell whether it was sent. A peer that is gone is no error."""
        try:
            self._connection.send(msgspec.json.encode(message) + b"\n", socket.MSG_DONTWAIT)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return False
        return True

    def receive_waiting(self) -> list[Incoming]:
        """Return the lines that are here, without waiting for more; those that are no messages are dropped.

        Raises: ProtocolError if the peer writes without ever ending a line.
        """
        if not self.has_ended and self._is_readable():
            self._take_data()
        *lines, self._buffer = self._buffer.split(b"\n")
        if len(self._buffer) > MAX_LINE_BYTES:
            raise ProtocolError("a control message is too long")
        messages: list[Incoming] = []
        for line in lines:
            try:
                messages.append(self._decoder.decode(line))
            except msgspec.MsgspecError as error:
                log.warning("dropped a control message: %s", error)
        return messages

    def has_been_left(self) -> bool:
        """Tell whether nobody holds the other end open any more; lines that are here are kept for who receives."""
        while not self.has_ended and self._is_readable():
            self._take_data()
        return self.has_ended

    def _take_data(self) -> None:
        data = b""
        with contextlib.suppress(ConnectionResetError):
            data = self._connection.recv(MAX_LINE_BYTES)
        self.has_ended = not data
        self._buffer += data

    def _is_readable(self) -> bool:
        poller = select.poll()
        poller.register(self._connection, select.POLLIN)
        return bool(poller.poll(0))

    def receive(self, timeout_s: float | None) -> Incoming:
        """Wait for the next line.

        Raises: LaunchError if the peer is gone or silent for `timeout_s`; ProtocolError if the line is no message.
        """
        self._connection.settimeout(timeout_s)
        while b"\n" not in self._buffer:
            try:
                data = self._connection.recv(65536)
            except TimeoutError:
                raise LaunchError(f"no answer within {timeout_s:.0f} s") from None
            except ConnectionResetError:
                data = b""
            if not data:
                raise LaunchError("the process at the other end has ended")
            self._buffer += data
            if len(self._buffer) > MAX_LINE_BYTES:
                raise ProtocolError("a control message is too long")
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            return self._decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"a control message is malformed: {error}") from None

    def end_process_with_launcher(self) -> None:
        """From now on, end this process at once when the launcher is gone. No message may be received any more."""

        def watch() -> None:
            self._connection.settimeout(None)
            try:
                while self._connection.recv(4096):
                    pass
            except OSError:
                pass
            os._exit(EXIT_STATUS_ORPHANED)

        threading.Thread(target=watch, name="lifeline", daemon=True).start()

    def close(self) -> None:
        """Close this end."""
        self._connection.close()
