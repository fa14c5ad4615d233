"""Routes for those who watch: the feed, the page that shows it, and the page's files.

The page is the same for everybody and holds no data; its policy lets it load and reach nothing but this server.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

from fastapi import FastAPI, Request
from starlette.responses import RedirectResponse, Response

from diptych.core.errors import NotFoundError
from diptych.frontend.auth.key_check import key_holds
from diptych.frontend.client_connection import ClientConnection, Intake
from diptych.frontend.errors import error_body
from diptych.frontend.event_stream import EventStream
from diptych.frontend.feed import MOST_FEED_S, Feed
from diptych.frontend.openai.wire import stream_error_event

FOLDER = Path(__file__).parents[2] / "dashboard"
PAGE = "index.html"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class _File(NamedTuple):
    content: bytes
    headers: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> "_File":
        content = path.read_bytes()
        tag = f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'
        return cls(content, HEADERS | {"ETag": tag, "Content-Type": f"{MEDIA_TYPES[path.suffix]}; charset=utf-8"})

    def answer(self, request: Request) -> Response:
        """Return it, or that it has not changed since it was asked for."""
        if request.headers.get("if-none-match") == self.headers["ETag"]:
            return Response(status_code=304, headers=self.headers)
        return Response(self.content, headers=self.headers)


def add_dashboard_routes(app: FastAPI, feed: Feed, intake: Intake) -> None:
    """Add /diptych/events, /dashboard and what belongs to the page. None is in the schema: it has no words for them."""
    files = {path.name: _File.read(path) for path in sorted(FOLDER.iterdir()) if path.suffix in MEDIA_TYPES}

    @app.get("/diptych/events", include_in_schema=False)
    async def events(request: Request) -> Response:
        """Tell what all workers and requests do, four times a second, until the client has seen enough."""
        connection = ClientConnection(request.receive, intake, MOST_FEED_S)
        return EventStream(
            feed.events(key_holds(request.scope)), lambda error: stream_error_event(error_body(error)), connection
        )

    @app.get("/dashboard", include_in_schema=False)
    async def dashboard(request: Request) -> Response:
        """Show the page."""
        return files[PAGE].answer(request)

    @app.get("/dashboard/{name:path}", include_in_schema=False)
    async def dashboard_file(name: str, request: Request) -> Response:
        """Return a file of the page."""
        if not name:
            return RedirectResponse("../dashboard", headers=HEADERS)  # relative: a proxy may have us under a path
        if name not in files or name == PAGE:
            raise NotFoundError(f"there is no /dashboard/{name}; the page is at /dashboard")
        return files[name].answer(request)
