"""Servers to be measured: one that runs already, or a command that starts one and is ended afterwards."""

import asyncio
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from diptych.bench.completions import ApiRoute, ServerApi
from diptych.bench.http_client import Address, HttpError, fetch
from diptych.bench.sample import Sample
from diptych.core.errors import BenchError, ConfigError
from diptych.core.slo import Slo
from diptych.frontend.tls import client_tls

ANSWER_TIMEOUT_S = 20.0
POLL_S = 0.2
END_TIMEOUT_S = 40.0
"""A server may finish running answers first."""
LOG_TAIL_CHARACTERS = 600
HTTP_OK, HTTP_UNAVAILABLE = 200, 503
OWN_COMMAND = "diptych"
OWN_WORDS = ("-m", "diptych", "serve")
PORT_FIELD = "{port}"
_NAMED = re.compile(r"^([\w.-]+)=(?=https?://|[^=]*\S)(.+)$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ApiOptions:
    """How servers are asked."""

    route: ApiRoute = "completions"
    ignore_eos: bool = True
    model: str | None = None
    """None: the first that the server lists."""
    api_key: str | None = None
    ca_cert: Path | None = None
    """Whom to trust, for https addresses; None: those whom the system trusts."""

    def address(self, url: str) -> Address:
        """Return where, and how, to ask a server.

        Raises: ConfigError if the URL is none, or the certificates cannot be used.
        """
        tls = None if self.ca_cert is None else client_tls(self.ca_cert)
        return Address.parse(url, self.api_key, tls)


@dataclass(frozen=True, slots=True)
class Target:
    """A server under measurement."""

    name: str
    url: str | None
    """Where it runs already; None: `command` starts it."""
    command: tuple[str, ...] = ()
    """With {port} where the port goes."""

    @classmethod
    def parse(cls, text: str) -> "Target":
        """Read `http://HOST:PORT`, `diptych serve FLAGS`, another command with {port} in it, or NAME= and one of them.

        Raises: ConfigError.
        """
        named = _NAMED.match(text)
        name, what = (named[1], named[2]) if named else (None, text)
        if what.startswith(("http://", "https://")):
            Address.parse(what)
            return cls(name or what, what)
        try:
            words = shlex.split(what)
        except ValueError as error:
            raise ConfigError(f"the command {what!r} cannot be read: {error}") from None
        if not words:
            raise ConfigError("a server to measure is an address or a command that starts one")
        if words[0] == OWN_COMMAND:
            if words[1:2] != ["serve"]:
                raise ConfigError(f"`diptych serve ...` starts a server, not {what!r}")
            return cls(name or what, None, (sys.executable, "-m", "diptych", *words[1:], "--port", PORT_FIELD))
        if PORT_FIELD not in what:
            raise ConfigError(f"say with {PORT_FIELD} where the port goes in {what!r}, or give an http:// address")
        return cls(name or what, None, tuple(words))

    def planning_for(self, slos: Sequence[Slo]) -> "Target":
        """Return it with the tightest of `slos` as its own, where it is a server of ours that is told none."""
        is_ours = self.command[1:4] == OWN_WORDS
        if not (is_ours and slos) or any(word.startswith("--slo-") for word in self.command):
            return self
        ttft_s, tpot_s = min(slo.ttft_s for slo in slos), min(slo.tpot_s for slo in slos)
        return replace(self, command=(*self.command, "--slo-ttft-s", f"{ttft_s:g}", "--slo-tpot-s", f"{tpot_s:g}"))

    @property
    def description(self) -> str:
        """What is measured, in words that can be run again."""
        return self.url if self.url is not None else shlex.join(self.command)

    @asynccontextmanager
    async def serving(self, options: ApiOptions, start_timeout_s: float) -> AsyncIterator[ServerApi]:
        """Start the server if need be and wait until it answers; end what was started.

        Raises: BenchError if it does not come up, ConfigError if it is not there.
        """
        if self.url is not None:
            yield await _first_answer(options.address(self.url), options, None, start_timeout_s)
            return
        port = _free_port()
        with tempfile.TemporaryFile() as log:
            process = self._start(port, log)
            try:
                address = options.address(f"http://127.0.0.1:{port}")
                yield await _first_answer(address, options, _Started(process, log, self.name), start_timeout_s)
            finally:
                await asyncio.shield(asyncio.to_thread(_end, process))

    def _start(self, port: int, log: IO[bytes]) -> "subprocess.Popen[bytes]":
        command = [word.replace(PORT_FIELD, str(port)) for word in self.command]
        try:
            # A session of its own: Ctrl-C in the terminal is for us, and all its children can be ended together.
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            raise ConfigError(f"{self.name} cannot be started: {error}") from None


@dataclass(frozen=True, slots=True)
class _Started:
    process: "subprocess.Popen[bytes]"
    log: IO[bytes]
    name: str

    def raise_if_ended(self) -> None:
        status = self.process.poll()
        if status is not None:
            raise BenchError(f"{self.name} ended while starting (status {status}): {self.last_words()}")

    def last_words(self) -> str:
        self.log.seek(0)
        text = self.log.read()[-LOG_TAIL_CHARACTERS:].decode(errors="replace").strip()
        return text or "it said nothing"


async def _first_answer(address: Address, options: ApiOptions, started: _Started | None, timeout_s: float) -> ServerApi:
    """Wait for the server to list its models and to complete a prompt; then it has everything that it needs."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        if started is not None:
            started.raise_if_ended()
        try:
            api = ServerApi(address, await _model(address, options), options.route, options.ignore_eos)
            trial = Sample(planned_s=0.0, sent_s=0.0, session=0, turn=0, num_wanted_tokens=4)
            await api.complete(["One two three"], trial, time.perf_counter(), ANSWER_TIMEOUT_S)
            if not trial.error:
                return api
            reason = trial.error
            if trial.status not in {0, HTTP_OK, HTTP_UNAVAILABLE}:
                raise BenchError(f"{address.host}:{address.port} refuses a completion: {reason}")
        except HttpError as error:
            reason = str(error)
            if started is None:
                raise ConfigError(f"{reason}; is a server running there?") from None
        if time.monotonic() > deadline_s:
            words = "" if started is None else f"; its last words: {started.last_words()}"
            raise BenchError(f"no answer within {timeout_s:.0f} s: {reason}{words}")
        await asyncio.sleep(POLL_S)


async def _model(address: Address, options: ApiOptions) -> str:
    if options.model is not None:
        return options.model
    status, content = await fetch(address, "/v1/models", ANSWER_TIMEOUT_S)
    if status != HTTP_OK:
        raise HttpError(f"/v1/models answered {status}")
    return _first_id(content)


def _first_id(models: Any) -> str:
    try:
        return str(models["data"][0]["id"])
    except (LookupError, TypeError):
        raise HttpError("/v1/models lists no model; name one with --model") from None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a server and all its children."""
    _signal(process, signal.SIGTERM)
    try:
        process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGKILL)
        process.wait()
    _signal(process, signal.SIGKILL)  # children that outlived it


def _signal(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return
