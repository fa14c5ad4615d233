"""One HTTP connection, with what uvicorn leaves to a proxy in front of it: deadlines, and bounds on what it holds.

A request's head must be whole in time and small; a client that reads nothing is cut, which aborts its request; what is
no HTTP, too much or too late gets an error of OpenAI's shape.
"""

import asyncio
import fcntl
import select
import socket
import struct
import termios
from typing import Any

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from diptych.core.errors import InvalidRequestError, RequestError, UnavailableError
from diptych.frontend.connections import Connections
from diptych.frontend.errors import HeadTimeoutError, HeadTooLargeError, error_response

MAX_HEAD_BYTES = 64 * 2**10
"""Of the request line and all headers; also of what follows a body, or stands between its parts."""
MAX_HEADERS = 100
MAX_PIPELINED_REQUESTS = 16
"""That wait on one connection behind the one that is being answered."""


class _RefusedError(Exception):
    """The parser must stop here: `HttpConnection` has noted why."""


class HttpConnection(HttpToolsProtocol):
    """Counted among `connections`, which sweeps it now and then."""

    def __init__(self, connections: Connections, **uvicorn_arguments: Any) -> None:
        super().__init__(**uvicorn_arguments)
        self._all = connections
        self._refusal: RequestError | None = None
        self._head_due_s: float | None = None
        """When the head of a request must be here; None while none has begun on a connection in use."""
        self._num_head_bytes = 0
        """Received since the last part of a body, or the last whole head."""
        self._running: RequestResponseCycle | None = None
        """The request that is or was answered last; uvicorn itself knows only which came last."""
        self._num_unread_bytes = 0
        self._read_s = 0.0
        """When the client was last seen to read, or had nothing to."""

    @property
    def has_unsent_bytes(self) -> bool:
        """Whether its client has yet to read something."""
        return self.transport.get_write_buffer_size() > 0

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or (self.cycle.response_complete and not self.pipeline)

    # Its life

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin: a request's head is due, however slowly it comes."""
        super().connection_made(transport)
        self._await_head()
        if not self._all.try_enter(self):
            self._refuse(UnavailableError("all connections are in use; try again later", code="too_many_connections"))

    def connection_lost(self, exc: Exception | None) -> None:
        """End, and with it the request that is being answered, also if others wait behind it."""
        self._all.leave(self)
        super().connection_lost(exc)
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def cut(self) -> None:
        """Close it at once; what is unsent is lost, and what its requests hold is freed."""
        self.transport.abort()

    def sweep(self, now_s: float) -> None:
        """Cut it if its client has let its time pass."""
        if self.transport.is_closing() and not self.has_unsent_bytes:
            return  # it ends by itself
        num_unread_bytes = self.transport.get_write_buffer_size() + _num_unacknowledged_bytes(self.transport)
        # More than before comes from a request that still runs, and cannot go on for long: sending then has to wait.
        if num_unread_bytes == 0 or num_unread_bytes != self._num_unread_bytes:
            self._num_unread_bytes, self._read_s = num_unread_bytes, now_s
        elif now_s - self._read_s >= self._all.client_timeout_s:
            self.cut()
        # While requests wait behind another nothing is read, so nobody else sees the end.
        if self.flow.read_paused and _has_hung_up(self.transport):
            self.cut()
        if self._head_due_s is not None and now_s >= self._head_due_s and not self.transport.is_closing():
            self._on_head_overdue()

    def _await_head(self) -> None:
        self._head_due_s = self.loop.time() + self._all.client_timeout_s

    def _on_head_overdue(self) -> None:
        if self._num_head_bytes:
            self._refuse(HeadTimeoutError(f"no whole request came within {self._all.client_timeout_s:.0f} s"))
        else:
            self.transport.close()

    # What comes

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if self._is_idle and self._head_due_s is None:
            self._await_head()
        self._num_head_bytes += len(data)
        super().data_received(data)
        if self._num_head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(_head_too_large())

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, of the head or behind a body."""
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            self._stop_parser(HeadTooLargeError(f"a request may have {MAX_HEADERS} headers at most"))

    def on_headers_complete(self) -> None:
        """Begin with a request, or queue it behind the one before."""
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            self._stop_parser(_head_too_large())
        if len(self.pipeline) >= MAX_PIPELINED_REQUESTS:
            self._stop_parser(InvalidRequestError("too many requests at once on one connection; open another"))
        super().on_headers_complete()
        self._num_head_bytes = 0
        self._head_due_s = None
        self._all.on_busy(self)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        self._num_head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Take note that a request is here in full."""
        self._num_head_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on with the next request, or wait for one."""
        super().on_response_complete()
        if self._is_idle:
            self._all.on_idle(self)

    # What is refused

    def _stop_parser(self, refusal: RequestError) -> None:
        """Let the parser fail, after which `send_400_response` is called. Raises: _RefusedError, always."""
        self._refusal = refusal
        raise _RefusedError

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser did not get through."""
        del msg
        self._refuse(self._refusal or InvalidRequestError("this is no HTTP request that the server understands"))

    def _refuse(self, error: RequestError) -> None:
        """Tell the client why, unless an answer is on its way to it, and close."""
        self._head_due_s = None
        running = self._running
        if running is None or running.response_complete or not running.response_started:
            response = error_response(error, {"Connection": "close"})
            headers = [*self.server_state.default_headers, *response.raw_headers]
            lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
            self.transport.write(STATUS_LINE[response.status_code] + lines + b"\r\n" + bytes(response.body))
        self.transport.close()


def _has_hung_up(transport: asyncio.Transport) -> bool:
    """Tell whether the client will send no more."""
    connection: socket.socket = transport.get_extra_info("socket")
    poller = select.poll()
    poller.register(connection.fileno(), select.POLLRDHUP)
    return bool(poller.poll(0))


def _num_unacknowledged_bytes(transport: asyncio.Transport) -> int:
    """Return how much the kernel still holds for the client: it makes room for more only in large steps."""
    connection: socket.socket = transport.get_extra_info("socket")
    try:
        answer: bytes = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:
        return 0  # it has just been closed
    (num_bytes,) = struct.unpack("i", answer)
    return int(num_bytes)


def _head_too_large() -> HeadTooLargeError:
    return HeadTooLargeError(f"the request's head is longer than {MAX_HEAD_BYTES} bytes; send shorter headers")
