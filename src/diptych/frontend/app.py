"""The routes: OpenAI's API for text, health, and a view on the cluster. Puts the frontend's parts together."""

import time

import msgspec
from fastapi import FastAPI
from fastapi import Request as HttpRequest
from starlette.responses import Response

from diptych.core.clock import Clock, SystemClock
from diptych.core.request import Request
from diptych.core.service import RequestService
from diptych.frontend.answer import AnswerText, collect_answer
from diptych.frontend.client_connection import ClientConnection, ClientGoneError, Intake
from diptych.frontend.errors import ErrorBody, install_error_handlers
from diptych.frontend.event_stream import EventStream
from diptych.frontend.middleware import Gate, LastResort
from diptych.frontend.openai_requests import ChatCompletionRequest, CompletionRequest
from diptych.frontend.openai_responses import ChatShape, CompletionShape, ModelCard, ModelList, ResponseShape
from diptych.frontend.request_translation import RequestTranslator
from diptych.frontend.settings import FrontendSettings
from diptych.frontend.tokenizer import Tokenizer

ERROR_RESPONSES: dict[int | str, dict[str, object]] = {
    400: {"model": ErrorBody, "description": "The request must be changed; `param` says where."},
    404: {"model": ErrorBody, "description": "No such model."},
    413: {"model": ErrorBody, "description": "The body is too long."},
    429: {"model": ErrorBody, "description": "Overloaded; Retry-After says when to come back."},
    503: {"model": ErrorBody, "description": "No worker can take it now."},
}
NGINX_STATUS_CLIENT_GONE = 499
"""Nobody reads it; a proxy's log or a test may."""


def create_app(
    service: RequestService, tokenizer: Tokenizer, settings: FrontendSettings, clock: Clock | None = None
) -> FastAPI:
    """Return the web application. `app.state.intake` is its `Intake`, which the server closes to drain."""
    clock = clock or SystemClock()
    intake = Intake(settings.max_in_flight_requests)
    app = FastAPI(title="Diptych", summary="OpenAI's API for text", redirect_slashes=False)
    app.state.intake = intake
    install_error_handlers(app)
    # The last to be added is the first to see a request.
    app.add_middleware(
        Gate, intake=intake, max_body_bytes=settings.max_body_bytes, body_timeout_s=settings.body_timeout_s
    )
    app.add_middleware(LastResort)
    translator = RequestTranslator(tokenizer, settings, clock)
    _add_generation_routes(app, _Generation(service, tokenizer, clock, intake), translator)
    _add_model_routes(app, translator, settings)
    _add_cluster_routes(app, service, intake)
    return app


class _Generation:
    """Serves a request that has been translated, streaming or not."""

    def __init__(self, service: RequestService, tokenizer: Tokenizer, clock: Clock, intake: Intake) -> None:
        self._service = service
        self._tokenizer = tokenizer
        self._clock = clock
        self._intake = intake

    async def answer(
        self,
        http_request: HttpRequest,
        body: ChatCompletionRequest | CompletionRequest,
        request: Request,
        shape: ResponseShape,
    ) -> Response:
        text = AnswerText(self._tokenizer.start_answer(), body.stop_strings)
        connection = ClientConnection(http_request.receive, self._intake, request.deadline_s - self._clock.now_s())
        response: Response
        if body.stream:
            response = EventStream(self._service, request, text, shape, connection)
        else:
            try:
                whole_text, end = await connection.run(collect_answer(self._service, request, text))
            except ClientGoneError:
                return Response(status_code=NGINX_STATUS_CLIENT_GONE)
            response = Response(shape.whole(whole_text, end), media_type="application/json")
        response.headers["X-Request-Id"] = request.request_id
        return response


def _add_generation_routes(app: FastAPI, generation: _Generation, translator: RequestTranslator) -> None:
    @app.post("/v1/chat/completions", responses=ERROR_RESPONSES)
    async def create_chat_completion(body: ChatCompletionRequest, http_request: HttpRequest) -> Response:
        """Answer a conversation."""
        request = translator.from_chat(body)
        shape = ChatShape(request.request_id, int(time.time()), body.model, with_usage=body.wants_stream_usage)
        return await generation.answer(http_request, body, request, shape)

    @app.post("/v1/completions", responses=ERROR_RESPONSES)
    async def create_completion(body: CompletionRequest, http_request: HttpRequest) -> Response:
        """Continue a text."""
        request = translator.from_completion(body)
        shape = CompletionShape(request.request_id, int(time.time()), body.model, with_usage=body.wants_stream_usage)
        return await generation.answer(http_request, body, request, shape)


def _add_model_routes(app: FastAPI, translator: RequestTranslator, settings: FrontendSettings) -> None:
    card = ModelCard(settings.model_name, int(time.time()), settings.max_model_len)

    @app.get("/v1/models")
    async def list_models() -> Response:
        """List the one model that is served."""
        return _json(ModelList([card]))

    @app.get("/v1/models/{model:path}", responses={404: ERROR_RESPONSES[404]})
    async def retrieve_model(model: str) -> Response:
        """Describe a model."""
        translator.check_model(model)
        return _json(card)


def _add_cluster_routes(app: FastAPI, service: RequestService, intake: Intake) -> None:
    @app.get("/health")
    async def health() -> Response:
        """Answer 200 as long as this process lives."""
        return _json({"status": "ok"})

    @app.get("/ready")
    async def ready() -> Response:
        """Answer 200 if requests can be served now, else 503."""
        status = service.status().health if intake.is_open else "draining"
        return _json({"status": status}, 200 if status == "ready" else 503)

    @app.get("/diptych/status")
    async def cluster_status() -> Response:
        """Describe every worker."""
        return _json(service.status())

    @app.get("/diptych/requests")
    async def recent_requests() -> Response:
        """List the last requests to end, oldest first: sizes and times, no text."""
        return _json(service.recent_requests())


def _json(content: object, status_code: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status_code, media_type="application/json")
