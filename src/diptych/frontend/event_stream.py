"""Streams an answer as server-sent events while it is made.

Invariants: until the first token nothing is sent, so a request that fails early gets a plain HTTP error; after it, an
error is one more event and the stream ends without [DONE]. One chunk at most is in the making: a client that reads
slowly slows down its own stream, and its deadline ends it.
"""

import asyncio
import contextlib
import logging
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from diptych.core.errors import RequestError
from diptych.core.request import Request
from diptych.core.service import RequestService
from diptych.frontend.answer import AnswerText, follow_answer
from diptych.frontend.client_connection import ClientConnection, ClientGoneError
from diptych.frontend.errors import InternalError, error_body
from diptych.frontend.openai_responses import AnswerEnd, ResponseShape, stream_error_event

log = logging.getLogger(__name__)

LAST_WORD_TIMEOUT_S = 2.0
"""How long a client that does not read may delay the end of its failed stream."""


class EventStream(Response):
    """The answer to one request, as an ASGI response. Nothing has been submitted before it is called."""

    media_type = "text/event-stream"

    def __init__(
        self,
        service: RequestService,
        request: Request,
        text: AnswerText,
        shape: ResponseShape,
        connection: ClientConnection,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        # An empty body's length, which a stream does not have.
        del self.headers["content-length"]
        self._service = service
        self._request = request
        self._text = text
        self._shape = shape
        self._connection = connection
        self._is_started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request.

        Raises: whatever ends it before its first token; later, nothing.
        """
        try:
            await self._connection.run(self._stream(send))
        except ClientGoneError:
            log.debug("the client of %s hung up", self._request.request_id)
        except RequestError as error:
            if not self._is_started:
                raise
            await self._send_error(send, error)
        except Exception:
            # A process edge: what happens after the first token has no other way to the client.
            if not self._is_started:
                raise
            log.exception("the stream of %s failed", self._request.request_id)
            await self._send_error(send, InternalError("the server made an error; its log says which"))

    async def _stream(self, send: Send) -> None:
        async with aclosing(follow_answer(self._service, self._request, self._text)) as answer:
            async for piece in answer:
                if isinstance(piece, AnswerEnd):
                    await self._send(send, self._shape.closing(piece), more_body=False)
                    return
                event = self._shape.delta(piece) if piece else b""
                if not self._is_started:
                    self._is_started = True
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    event = self._shape.opening() + event
                if event:
                    await self._send(send, event)

    async def _send(self, send: Send, body: bytes, *, more_body: bool = True) -> None:
        """Hand over to the server, which waits while the client's buffer is full."""
        await send({"type": "http.response.body", "body": body, "more_body": more_body})

    async def _send_error(self, send: Send, error: RequestError) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORD_TIMEOUT_S):
                await self._send(send, stream_error_event(error_body(error)), more_body=False)
