"""The web application: routes behind middleware. Puts the frontend's parts together."""

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from diptych.core.clock import Clock, SystemClock
from diptych.core.service import ClusterService
from diptych.core.version import __version__
from diptych.frontend.answering import Answering
from diptych.frontend.auth.key_check import KeyCheck
from diptych.frontend.auth.key_ring import KeyRing
from diptych.frontend.client_connection import Intake
from diptych.frontend.connections import Connections
from diptych.frontend.errors import install_error_handlers
from diptych.frontend.feed import Feed
from diptych.frontend.grammar_check import GrammarChecker
from diptych.frontend.middleware import Gate, LastResort, PathPrefix
from diptych.frontend.openapi import install_schema
from diptych.frontend.request_translation import RequestTranslator
from diptych.frontend.routes.cluster import add_cluster_routes
from diptych.frontend.routes.dashboard import add_dashboard_routes
from diptych.frontend.routes.generation import add_chat_and_completions, add_responses
from diptych.frontend.routes.metrics import add_metrics_route
from diptych.frontend.routes.text import add_text_routes
from diptych.frontend.routes.workers import add_worker_routes
from diptych.frontend.settings import FrontendSettings
from diptych.frontend.text.tokenizer import Tokenizer
from diptych.telemetry.rejections import OnRejected
from diptych.telemetry.watch import Watch


def create_app(
    service: ClusterService,
    tokenizer: Tokenizer,
    settings: FrontendSettings,
    clock: Clock | None = None,
    watch: Watch | None = None,
) -> FastAPI:
    """Return the web application. `watch`: who hears of refusals, and what /metrics tells.

    `app.state.intake` is its `Intake`, which the server closes to drain; `app.state.connections` its `Connections`;
    `app.state.grammars` its `GrammarChecker`, which it closes at the end.

    Raises: ConfigError if the file of API keys cannot be used.
    """
    clock = clock or SystemClock()
    intake = Intake(settings.max_in_flight_requests)
    keys = KeyRing(settings.api_keys, settings.api_key_file, clock) if settings.has_keys else None
    grammars = GrammarChecker(tokenizer.vocabulary, settings.eos_token_ids)
    app = FastAPI(title="Diptych", summary="OpenAI's API for text", version=__version__, redirect_slashes=False)
    app.state.intake = intake
    app.state.grammars = grammars
    app.state.connections = Connections(settings.connection_limits)
    watch = watch or Watch(clock)
    on_rejected = watch.on_rejected
    install_error_handlers(app, on_rejected)
    _add_middleware(app, intake, keys, settings, on_rejected)
    translator = RequestTranslator(tokenizer, settings, clock)
    answering = Answering(service, tokenizer, clock, intake, grammars, on_rejected)
    add_chat_and_completions(app, answering, translator, on_rejected)
    add_responses(app, answering, translator, tokenizer, on_rejected)
    add_text_routes(app, translator, tokenizer, settings)
    add_cluster_routes(app, service, intake)
    add_worker_routes(app, service)
    add_dashboard_routes(app, Feed(service, settings.slo, clock), intake)
    add_metrics_route(app, service, watch.metrics)
    install_schema(app, settings.model_name, needs_keys=settings.has_keys)
    return app


def _add_middleware(
    app: FastAPI, intake: Intake, keys: KeyRing | None, settings: FrontendSettings, on_rejected: OnRejected
) -> None:
    """Add what stands before the routes; the last to be added is the first to see a request."""
    app.add_middleware(
        Gate,
        intake=intake,
        max_body_bytes=settings.max_body_bytes,
        body_timeout_s=settings.client_timeout_s,
        on_rejected=on_rejected,
    )
    app.add_middleware(LastResort)
    if keys is not None:
        app.add_middleware(KeyCheck, keys=keys, on_rejected=on_rejected)
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
