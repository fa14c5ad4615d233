"""A streaming HTTP/1.1 client that costs the machine little: it shares the cores with the server that it measures.

One connection a request, as from many clients. Parsing is httptools' (what uvicorn uses); an event costs some ten
microseconds, a fifth of what a full HTTP library takes.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import SplitResult, urlsplit

import httptools

from diptych.core.errors import ConfigError
from diptych.core.version import __version__

CONNECT_TIMEOUT_S = 10.0
OnBody = Callable[[bytes], None]
"""Takes a piece of the body as it comes."""


class HttpError(Exception):
    """The exchange failed: no connection, or one that broke off or sent no HTTP."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server's API is."""

    host: str
    port: int
    path: str
    """Before every route; empty or /llm."""
    is_secure: bool
    headers: tuple[tuple[str, str], ...] = ()
    tls: ssl.SSLContext | None = None
    """Whom to trust, where it is secure; None: those whom the system trusts."""

    @classmethod
    def parse(cls, url: str, api_key: str | None = None, tls: ssl.SSLContext | None = None) -> "Address":
        """Read a base URL, with or without /v1 at its end; `tls`: whom to trust, None for those of the system.

        Raises: ConfigError.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = SplitResult("", "", "", "", ""), None
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigError(f"a server's address is written like http://127.0.0.1:8000, not {url!r}")
        is_secure = parts.scheme == "https"
        headers = (("Authorization", f"Bearer {api_key}"),) if api_key else ()
        path = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, port or (443 if is_secure else 80), path, is_secure, headers, tls)

    def request(self, method: str, route: str, body: Any | None) -> bytes:
        """Return a whole request."""
        content = b"" if body is None else json.dumps(body).encode()
        host = f"[{self.host}]" if ":" in self.host else self.host
        headers = [
            ("Host", f"{host}:{self.port}"),
            ("User-Agent", f"diptych-bench/{__version__}"),
            ("Connection", "close"),
            *self.headers,
        ]
        if body is not None:
            headers += [("Content-Type", "application/json"), ("Content-Length", str(len(content)))]
        lines = [f"{method} {self.path}{route} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
        return "\r\n".join([*lines, "", ""]).encode() + content


class Exchange(asyncio.Protocol):
    """One request and its answer. `on_body` is called as data arrives, within the event loop's read."""

    def __init__(self, on_body: OnBody) -> None:
        self._on_body = on_body
        self._parser = httptools.HttpResponseParser(self)
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self.status = 0
        """0 until the head of the answer is here."""

    async def wait_for_end(self) -> None:
        """Return when the answer is complete. Raises: HttpError."""
        await self._done

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of asyncio's protocol."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def send(self, data: bytes) -> None:
        """Send the request."""
        assert self._transport is not None
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        """Part of asyncio's protocol."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"the server sent no HTTP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of asyncio's protocol."""
        self._fail(f"the connection broke off{f': {exc}' if exc else ''}")

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()
        if not self._done.done():
            self._done.cancel()

    # Called by the parser

    def on_headers_complete(self) -> None:
        """Take the status: the head is here."""
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """Pass on a piece of the body."""
        self._on_body(body)

    def on_message_complete(self) -> None:
        """End."""
        if not self._done.done():
            self._done.set_result(None)

    def _fail(self, reason: str) -> None:
        if not self._done.done():
            self._done.set_exception(HttpError(reason))


@asynccontextmanager
async def exchange(
    address: Address, method: str, route: str, body: Any | None, on_body: OnBody
) -> AsyncIterator[Exchange]:
    """Send a request; hang up on leaving.

    Raises: HttpError if there is no connection.
    """
    loop = asyncio.get_running_loop()
    tls = (address.tls or ssl.create_default_context()) if address.is_secure else None
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, opened = await loop.create_connection(lambda: Exchange(on_body), address.host, address.port, ssl=tls)
    except (OSError, TimeoutError) as error:
        raise HttpError(f"no connection to {address.host}:{address.port}: {error or 'timeout'}") from None
    opened.send(address.request(method, route, body))
    try:
        yield opened
    finally:
        opened.close()


async def fetch(address: Address, route: str, timeout_s: float, body: Any | None = None) -> tuple[int, Any]:
    """GET (or POST) JSON; return status and content (None if it is no JSON).

    Raises: HttpError, also if it takes longer than `timeout_s`.
    """
    pieces: list[bytes] = []
    try:
        async with (
            asyncio.timeout(timeout_s),
            exchange(address, "GET" if body is None else "POST", route, body, pieces.append) as opened,
        ):
            await opened.wait_for_end()
            status = opened.status
    except TimeoutError:
        raise HttpError(f"{address.host}:{address.port}{route} did not answer within {timeout_s:.0f} s") from None
    try:
        return status, json.loads(b"".join(pieces))
    except ValueError:
        return status, None
