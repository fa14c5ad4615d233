"""What stands between the server and the routes: a place in the intake, the body in full, and a net for our defects."""

import asyncio
import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diptych.core.errors import InternalError, RequestError
from diptych.frontend.client_connection import ClientGoneError, Intake
from diptych.frontend.errors import BodyTimeoutError, BodyTooLargeError, error_response
from diptych.telemetry.rejections import OnRejected

log = logging.getLogger(__name__)


class PathPrefix:
    """Lets the server be reached under a path, whether or not a proxy in front of it takes the path away."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = "/" + prefix.strip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            path: str = scope["path"]
            if path == self._prefix or path.startswith(self._prefix + "/"):
                path = path[len(self._prefix) :] or "/"
            # Links in the documentation pages then name the path that the browser has to ask for.
            scope = {**scope, "path": self._prefix + path, "root_path": self._prefix}
        await self._app(scope, receive, send)


class LastResort:
    """Answers an exception that nobody expected with a bare 500 and writes it to the log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        is_started = False

        async def observed_send(message: Message) -> None:
            nonlocal is_started
            is_started = True
            await send(message)

        try:
            await self._app(scope, receive, observed_send)
        except Exception:
            # A process edge: one request must not take the connection or the server with it.
            log.exception("%s %s failed", scope.get("method"), scope.get("path"))
            if is_started:
                raise
            await error_response(InternalError("the server made an error; its log says which"))(scope, receive, send)


class Gate:
    """Gives each POST a place in the intake until its answer is sent, and reads its body, within limits."""

    def __init__(
        self, app: ASGIApp, intake: Intake, max_body_bytes: int, body_timeout_s: float, on_rejected: OnRejected
    ) -> None:
        self._app = app
        self._on_rejected = on_rejected
        self._intake = intake
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        try:
            with self._intake.admit():
                body = await self._read_body(scope, receive)
                await self._app(scope, _replay(body, receive), send)
        except ClientGoneError:
            log.debug("a client hung up while it sent its body")
        except RequestError as error:
            self._on_rejected(error)
            await error_response(error)(scope, receive, send)

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes:
        """Return the whole body.

        Raises: BodyTooLargeError (before reading, where the client announces it), BodyTimeoutError, ClientGoneError.
        """
        announced = dict(scope["headers"]).get(b"content-length", b"")
        if announced.isdigit() and int(announced) > self._max_body_bytes:
            raise self._too_large()
        chunks: list[bytes] = []
        num_left_bytes = self._max_body_bytes
        try:
            async with asyncio.timeout(self._body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    chunks.append(message.get("body", b""))
                    num_left_bytes -= len(chunks[-1])
                    if num_left_bytes < 0:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return b"".join(chunks)
        except TimeoutError:
            raise BodyTimeoutError(f"the body did not arrive within {self._body_timeout_s:.0f} s") from None

    def _too_large(self) -> BodyTooLargeError:
        return BodyTooLargeError(f"the body is longer than {self._max_body_bytes} bytes; send less")


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that brings the body that was read already, and then goes on."""
    is_replayed = False

    async def replaying_receive() -> Message:
        nonlocal is_replayed
        if is_replayed:
            return await receive()
        is_replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replaying_receive
