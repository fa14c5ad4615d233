"""Serves the application over HTTP, and ends in order: refuse, finish, cut off, close.

Signals are the composing process's; so is the event loop (run it on uvloop). Every wait of `stop` has a deadline.
"""

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Generator
from functools import partial

import uvicorn
from fastapi import FastAPI

from diptych.core.bounds import MAX_PORT
from diptych.core.errors import LaunchError
from diptych.frontend.client_connection import Intake
from diptych.frontend.connections import Connections
from diptych.frontend.grammar_check import GrammarChecker
from diptych.frontend.http_connection import HttpConnection

log = logging.getLogger(__name__)

BACKLOG_CONNECTIONS = 2048
KEEP_ALIVE_S = 75
"""Longer than the idle time after which clients and proxies drop a pooled connection by themselves."""
DRAIN_GRACE_S = 30.0
"""For running requests to finish once the server stops."""
TICKS_A_SWEEP = 10
"""uvicorn ticks ten times a second."""
CLOSE_TIMEOUT_S = 5
"""For connections to close once their requests are over."""


def open_listener(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes any free one. The caller closes it.

    Raises: LaunchError if the address cannot be had.
    """
    if port not in range(MAX_PORT + 1):
        # getaddrinfo would wrap it around in silence.
        raise LaunchError(f"port {port} is not from 0 to {MAX_PORT}; choose another with --port")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise LaunchError(f"{host}:{port} is no address to listen on ({error}); choose another with --host") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted connections inherit both: a token must not wait for the next one, a vanished client must be noticed.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.bind(address)
        listener.listen(BACKLOG_CONNECTIONS)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise LaunchError(_listen_failure(host, port, error)) from error
    return listener


def _listen_failure(host: str, port: int, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} on {host} is taken; choose another with --port"
        case errno.EACCES:
            return f"port {port} on {host} needs more rights; choose one above 1023 with --port"
        case _:
            return f"cannot listen on {host}:{port} ({error.strerror}); choose another with --host or --port"


class _Uvicorn(uvicorn.Server):
    """A server that leaves signals alone, and its clients' patience to `Connections`."""

    def __init__(self, config: uvicorn.Config, connections: Connections) -> None:
        super().__init__(config)
        self._connections = connections

    async def on_tick(self, counter: int) -> bool:
        """Sweep the connections every `TICKS_A_SWEEP`."""
        if counter % TICKS_A_SWEEP == 0:
            self._connections.sweep()
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture none."""
        yield


class FrontendServer:
    """One listening HTTP server: `bind`, `serve` until `stop`. Once over, it cannot be used again."""

    def __init__(self, app: FastAPI, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        """Serve `app`, made by `create_app`; port 0 takes any free one, and `port` tells which. `tls`: as HTTPS."""
        self._host = host
        self.port = port
        self._listener: socket.socket | None = None
        self._intake: Intake = app.state.intake
        self._grammars: GrammarChecker = app.state.grammars
        self._scheme = "http" if tls is None else "https"
        self._ended = asyncio.Event()
        self._is_serving = False
        connections: Connections = app.state.connections
        self._server = _Uvicorn(
            uvicorn.Config(
                app,
                http=partial(HttpConnection, connections),  # type: ignore[arg-type]  # called as the class is
                log_config=None,
                log_level="error",  # what clients send wrong is told to them, not to the log
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                ssl_context_factory=None if tls is None else lambda *_: tls,
                backlog=BACKLOG_CONNECTIONS,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=CLOSE_TIMEOUT_S,
            ),
            connections,
        )

    def bind(self) -> int:
        """Take the port and return it. Connections wait until `serve` runs.

        Raises: LaunchError if the port is taken; nothing is held then.
        """
        self._listen()
        return self.port

    def _listen(self) -> socket.socket:
        if self._listener is None:
            self._listener = open_listener(self._host, self.port)
            self.port = self._listener.getsockname()[1]
        return self._listener

    async def serve(self) -> None:
        """Serve until `stop` is done (or until cancelled); takes the port first if `bind` did not.

        Raises: LaunchError if the port is taken.
        """
        if self._server.should_exit:
            return
        listener = self._listen()
        self._is_serving = True
        log.debug("listening on %s://%s:%d", self._scheme, self._host, self.port)
        try:
            await self._server.serve(sockets=[listener])
        finally:
            listener.close()
            await self._grammars.close()
            self._ended.set()

    def begin_drain(self) -> None:
        """Let /ready say 503 and refuse new requests with 503; running ones go on."""
        self._intake.close()

    async def stop(self, grace_s: float = DRAIN_GRACE_S) -> None:
        """Drain for up to `grace_s`, end what still runs with an error, close all connections.

        `serve` returns before this does, at most a few seconds after `grace_s`.
        """
        self.begin_drain()
        if not await self._intake.try_wait_until_idle(grace_s):
            log.warning("requests still run %.0f s after the stop; they are cut off", grace_s)
        self._intake.cut_off()  # also those who only watch
        self._server.should_exit = True
        if self._is_serving:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), 2 * CLOSE_TIMEOUT_S)
        elif self._listener is not None:
            self._listener.close()
