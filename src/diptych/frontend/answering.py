"""Serves a generation over HTTP, whole or streamed, for as long as its client waits."""

from collections.abc import AsyncGenerator, Callable
from typing import Protocol

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from diptych.core.clock import Clock
from diptych.core.errors import RequestError
from diptych.core.service import RequestService
from diptych.frontend.answer import AnswerEvent, AnswerEvents, Generation, WholeAnswer, collect_answer
from diptych.frontend.client_connection import ClientConnection, ClientGoneError, Intake
from diptych.frontend.errors import error_body
from diptych.frontend.event_stream import EventStream
from diptych.frontend.openai.wire import stream_error_event
from diptych.frontend.text.tokenizer import Tokenizer

NGINX_STATUS_CLIENT_GONE = 499
"""Nobody reads it; a proxy's log or a test may."""


class StreamShape(Protocol):
    """How a stream looks on the wire. Each method returns bytes to send as they are, perhaps none."""

    def on_event(self, happened: AnswerEvent) -> bytes:
        """Return what to send when something has happened to an answer."""
        ...

    def closing(self) -> bytes:
        """Return what ends the stream."""
        ...


def _write_stream_error(error: RequestError) -> bytes:
    return stream_error_event(error_body(error))


class Answering:
    """What routes need to serve what they have translated."""

    def __init__(self, service: RequestService, tokenizer: Tokenizer, clock: Clock, intake: Intake) -> None:
        self._service = service
        self._tokenizer = tokenizer
        self._clock = clock
        self._intake = intake

    async def whole(
        self, http_request: HttpRequest, generation: Generation, write: Callable[[WholeAnswer], bytes]
    ) -> Response:
        """Return the answer as JSON, as `write` writes it.

        Raises: RequestError as the service and the answers.
        """
        work = collect_answer(self._service, self._tokenizer, generation)
        try:
            answer = await self._connection(http_request, generation).run(work)
        except ClientGoneError:
            return Response(status_code=NGINX_STATUS_CLIENT_GONE)
        return _named(Response(write(answer), media_type="application/json"), generation)

    def stream(
        self,
        http_request: HttpRequest,
        generation: Generation,
        shape: StreamShape,
        write_error: Callable[[RequestError], bytes] = _write_stream_error,
    ) -> Response:
        """Return the answer as a stream of server-sent events."""
        connection = self._connection(http_request, generation)
        return _named(EventStream(self._events(generation, shape), write_error, connection), generation)

    async def _events(self, generation: Generation, shape: StreamShape) -> AsyncGenerator[bytes, None]:
        async with AnswerEvents(self._service, self._tokenizer, generation) as events:
            async for happened in events:
                yield shape.on_event(happened)
        yield shape.closing()

    def _connection(self, http_request: HttpRequest, generation: Generation) -> ClientConnection:
        left_s = generation.requests[0].deadline_s - self._clock.now_s()
        return ClientConnection(http_request.receive, self._intake, left_s)


def _named(response: Response, generation: Generation) -> Response:
    response.headers["X-Request-Id"] = generation.requests[0].request_id
    return response
