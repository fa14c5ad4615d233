"""Streams an answer as server-sent events while it is made.

Invariants: until there is a first event nothing is sent, so a request that fails early gets a plain HTTP error; after
it, an error is one more event and the stream ends without [DONE]. One event at most is in the making: a client that
reads slowly slows down its own stream, and its deadline ends it.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from diptych.core.errors import InternalError, RequestError
from diptych.frontend.client_connection import ClientConnection, ClientGoneError

log = logging.getLogger(__name__)

LAST_WORD_TIMEOUT_S = 2.0
"""How long a client that does not read may delay the end of its failed stream."""

Events = AsyncGenerator[bytes, None]
"""Encoded events; each item is sent as it is, empty ones are not."""


class EventStream(Response):
    """The answer to one request, as an ASGI response. Nothing has been submitted before it is called."""

    media_type = "text/event-stream"

    def __init__(
        self, events: Events, write_error: Callable[[RequestError], bytes], connection: ClientConnection
    ) -> None:
        """Send `events`, which it closes in any case; `write_error` makes an event of what ended them."""
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        # An empty body's length, which a stream does not have.
        del self.headers["content-length"]
        self._events = events
        self._write_error = write_error
        self._connection = connection
        self._is_started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request.

        Raises: whatever ends it before its first event; later, nothing.
        """
        try:
            await self._connection.run(self._stream(send))
        except ClientGoneError:
            log.debug("a client hung up while its answer was streamed")
        except RequestError as error:
            if not self._is_started:
                raise
            await self._send_error(send, error)
        except Exception:
            # A process edge: what happens after the first event has no other way to the client.
            if not self._is_started:
                raise
            log.exception("a stream failed")
            await self._send_error(send, InternalError("the server made an error; its log says which"))

    async def _stream(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            async for event in events:
                if not event:
                    continue
                if not self._is_started:
                    self._is_started = True
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                # The server waits here while the client's buffer is full.
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_error(self, send: Send, error: RequestError) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORD_TIMEOUT_S):
                await send({"type": "http.response.body", "body": self._write_error(error), "more_body": False})
