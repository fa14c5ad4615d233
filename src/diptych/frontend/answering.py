"""Serves a generation over HTTP, whole or streamed, for as long as its client waits."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Protocol

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from diptych.core.clock import Clock
from diptych.core.errors import RequestError
from diptych.core.service import RequestService
from diptych.frontend.answer import AnswerEvent, AnswerEvents, Generation, WholeAnswer, collect_answer
from diptych.frontend.auth.key_check import tenant_of
from diptych.frontend.auth.tenant import MeteredService, Tenant
from diptych.frontend.client_connection import ClientConnection, ClientGoneError, Intake
from diptych.frontend.client_headers import ClientHeaders
from diptych.frontend.errors import error_body
from diptych.frontend.event_stream import EventStream
from diptych.frontend.grammar_check import GrammarChecker
from diptych.frontend.openai.wire import stream_error_event
from diptych.frontend.text.tokenizer import Tokenizer
from diptych.telemetry.rejections import OnRejected, noting

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

    def __init__(  # noqa: PLR0913, PLR0917  the parts that it is made of
        self,
        service: RequestService,
        tokenizer: Tokenizer,
        clock: Clock,
        intake: Intake,
        grammars: GrammarChecker,
        on_rejected: OnRejected,
    ) -> None:
        self._service = service
        self._on_rejected = on_rejected
        self._tokenizer = tokenizer
        self._clock = clock
        self._intake = intake
        self._grammars = grammars

    async def whole(
        self, http_request: HttpRequest, generation: Generation, write: Callable[[WholeAnswer], bytes]
    ) -> Response:
        """Return the answer as JSON, as `write` writes it.

        Raises: RequestError as the service and the answers.
        """
        work = self._collect(generation, tenant_of(http_request.scope))
        try:
            answer = await self._connection(http_request, generation).run(work)
        except ClientGoneError:
            return Response(status_code=NGINX_STATUS_CLIENT_GONE)
        return _named(Response(write(answer), media_type="application/json"), generation, http_request)

    def stream(
        self,
        http_request: HttpRequest,
        generation: Generation,
        shape: StreamShape,
        write_error: Callable[[RequestError], bytes] = _write_stream_error,
    ) -> Response:
        """Return the answer as a stream of server-sent events."""
        connection = self._connection(http_request, generation)
        events = self._events(generation, shape, tenant_of(http_request.scope))
        return _named(EventStream(events, write_error, connection), generation, http_request)

    async def _collect(self, generation: Generation, tenant: Tenant | None) -> WholeAnswer:
        async with self._admitted(generation, tenant) as (service, own):
            return await collect_answer(service, self._tokenizer, own)

    async def _events(
        self, generation: Generation, shape: StreamShape, tenant: Tenant | None
    ) -> AsyncGenerator[bytes, None]:
        async with (
            self._admitted(generation, tenant) as (service, own),
            AnswerEvents(service, self._tokenizer, own) as events,
        ):
            async for happened in events:
                yield shape.on_event(happened)
        yield shape.closing()

    @asynccontextmanager
    async def _admitted(
        self, generation: Generation, tenant: Tenant | None
    ) -> AsyncIterator[tuple[RequestService, Generation]]:
        """Hand out the service that counts for a tenant, and the generation under the tenant's cache salt.

        Raises: InvalidRequestError for a grammar that cannot be used, OverloadedError if the tenant has no tokens left.
        """
        name = "" if tenant is None else tenant.key.name
        for grammar in {request.sampling.grammar for request in generation.requests}:
            if grammar is not None:
                with noting(self._on_rejected):
                    await self._grammars.check(grammar, name)
        if tenant is None:
            yield self._service, generation
            return
        with ExitStack() as running:
            with noting(self._on_rejected):
                spending = running.enter_context(tenant.spending(generation))
            yield MeteredService(self._service, spending), tenant.salted(generation)

    def _connection(self, http_request: HttpRequest, generation: Generation) -> ClientConnection:
        left_s = generation.requests[0].deadline_s - self._clock.now_s()
        return ClientConnection(http_request.receive, self._intake, left_s)


def _named(response: Response, generation: Generation, http_request: HttpRequest) -> Response:
    """Name the request as its client does or, if it has no name for it, as we do."""
    own_id = generation.requests[0].request_id
    response.headers["X-Request-Id"] = ClientHeaders.of(http_request.headers).request_id or own_id
    return response
