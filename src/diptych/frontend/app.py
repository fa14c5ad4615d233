"""The web application: routes behind middleware. Puts the frontend's parts together."""

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from diptych.core.clock import Clock, SystemClock
from diptych.core.service import RequestService
from diptych.core.version import __version__
from diptych.frontend.answering import Answering
from diptych.frontend.client_connection import Intake
from diptych.frontend.connections import Connections
from diptych.frontend.errors import install_error_handlers
from diptych.frontend.middleware import Gate, LastResort, PathPrefix
from diptych.frontend.openapi import install_schema
from diptych.frontend.request_translation import RequestTranslator
from diptych.frontend.routes.cluster import add_cluster_routes
from diptych.frontend.routes.generation import add_chat_and_completions, add_responses
from diptych.frontend.routes.text import add_text_routes
from diptych.frontend.settings import FrontendSettings
from diptych.frontend.text.tokenizer import Tokenizer


def create_app(
    service: RequestService, tokenizer: Tokenizer, settings: FrontendSettings, clock: Clock | None = None
) -> FastAPI:
    """Return the web application.

    `app.state.intake` is its `Intake`, which the server closes to drain; `app.state.connections` its `Connections`.
    """
    clock = clock or SystemClock()
    intake = Intake(settings.max_in_flight_requests)
    app = FastAPI(title="Diptych", summary="OpenAI's API for text", version=__version__, redirect_slashes=False)
    app.state.intake = intake
    app.state.connections = Connections(settings.connection_limits)
    install_error_handlers(app)
    _add_middleware(app, intake, settings)
    translator = RequestTranslator(tokenizer, settings, clock)
    answering = Answering(service, tokenizer, clock, intake)
    add_chat_and_completions(app, answering, translator)
    add_responses(app, answering, translator, tokenizer)
    add_text_routes(app, translator, tokenizer, settings)
    add_cluster_routes(app, service, intake)
    install_schema(app, settings.model_name)
    return app


def _add_middleware(app: FastAPI, intake: Intake, settings: FrontendSettings) -> None:
    """Add what stands before the routes; the last to be added is the first to see a request."""
    app.add_middleware(
        Gate, intake=intake, max_body_bytes=settings.max_body_bytes, body_timeout_s=settings.client_timeout_s
    )
    app.add_middleware(LastResort)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    if settings.root_path:
        app.add_middleware(PathPrefix, prefix=settings.root_path)
