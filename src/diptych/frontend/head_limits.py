"""Bounds what a client may send around its body: URL and headers, and what HTTP allows to stand between and after.

The parser keeps a header until it is complete, and uvicorn keeps all of them, without any bound. So the protocol hangs
up on a client whose head does not end, and the middleware refuses one that has ended and is too large.
"""

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from diptych.frontend.errors import HeadTooLargeError, error_body, error_response

MAX_HEADERS = 128
MAX_HEAD_BYTES = 32_768
"""Of URL and headers together; other servers read 8 to 64 KB."""


def _too_large() -> HeadTooLargeError:
    return HeadTooLargeError(f"URL and headers may have {MAX_HEAD_BYTES} bytes and {MAX_HEADERS} lines; send less")


class HeadLimits:
    """Refuses requests whose head is too large."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            headers = scope["headers"]
            num_bytes = sum(len(name) + len(value) for name, value in headers)
            num_bytes += len(scope["raw_path"]) + len(scope["query_string"])
            if len(headers) > MAX_HEADERS or num_bytes > MAX_HEAD_BYTES:
                await error_response(_too_large())(scope, receive, send)
                return
        await self._app(scope, receive, send)


class BoundedHeadProtocol(HttpToolsProtocol):
    """Counts what comes without getting anywhere: bytes that neither end a head nor are a part of a body."""

    _num_idle_bytes = 0
    _got_on = False

    def data_received(self, data: bytes) -> None:
        """Part of asyncio's protocol."""
        self._got_on = False
        super().data_received(data)
        self._num_idle_bytes = 0 if self._got_on else self._num_idle_bytes + len(data)
        if self._num_idle_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse()

    def _refuse(self) -> None:
        """Say why, unless an answer is on its way already, and hang up."""
        if self.cycle is None or self.cycle.response_complete:
            content = error_body(_too_large())
            head = (
                "HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
                f"content-length: {len(content)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + content)
        self.transport.close()

    # Called by the parser

    def on_headers_complete(self) -> None:
        """Go on to the body."""
        self._got_on = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Go on in the body."""
        self._got_on = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Go on to the next request."""
        self._got_on = True
        super().on_message_complete()
