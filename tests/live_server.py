"""A client of a real server, for tests: ask, stream, hang up, and look whether anything is still held."""

import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

PATIENCE_S = 60.0
"""For what must happen, on a machine that may be busy. Nothing waits longer; no test waits when all is well."""
POLL_S = 0.02


def eventually(is_true: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Return once `is_true`; fail the test if that does not come within `timeout_s`."""
    give_up_s = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > give_up_s:
            pytest.fail(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(POLL_S)


@dataclass(frozen=True)
class Completion:
    """An answer of /v1/completions."""

    text: str
    finish_reason: str
    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int

    @classmethod
    def of(cls, text: str, finish_reason: str, usage: dict[str, Any]) -> "Completion":
        """Put what came over the wire together."""
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return cls(text, finish_reason, usage["prompt_tokens"], usage["completion_tokens"], cached)


@dataclass
class Stream:
    """A streamed completion, read as far as the test wants. `error` is the event that ended it, if one did."""

    response: httpx.Response
    text: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    is_done: bool = False

    def __post_init__(self) -> None:
        self._lines = self.response.iter_lines()

    def read(self, num_events: int | None = None) -> "Stream":
        """Read this many events, or all to the end."""
        num_left = num_events
        while num_left is None or num_left > 0:
            line = next(self._lines, None)
            if line is None:
                break
            if line:
                self._take(line.removeprefix("data: "))
                num_left = None if num_left is None else num_left - 1
        return self

    def _take(self, data: str) -> None:
        assert not self.is_done and self.error is None, f"after the end came {data}"
        if data == "[DONE]":
            self.is_done = True
            return
        event = json.loads(data)
        self.error = event.get("error")
        self.usage = event.get("usage") or self.usage
        for choice in event.get("choices", ()):
            self.text += choice["text"]
            self.finish_reason = choice["finish_reason"] or self.finish_reason

    def completion(self) -> Completion:
        """Return the whole answer; fail unless it came to its end as it should."""
        assert self.is_done, f"the stream ended early: {self.error}"
        assert self.finish_reason is not None
        return Completion.of(self.text, self.finish_reason, self.usage)


Prompt = str | Sequence[int]


class LiveServer:
    """A client of a running server. Its defaults are greedy, `ignore_eos`, and 16 tokens."""

    def __init__(self, url: str, api_key: str | None = None, tls: ssl.SSLContext | bool = True) -> None:
        self.url = url
        limits = httpx.Limits(max_connections=256)
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self.http = httpx.Client(base_url=url, timeout=PATIENCE_S, limits=limits, headers=headers, verify=tls)
        self.model: str = self.http.get("/v1/models").json()["data"][0]["id"]

    def close(self) -> None:
        """Hang up."""
        self.http.close()

    def body(self, prompt: Prompt, **more: Any) -> dict[str, Any]:
        """Return a body for /v1/completions."""
        prompt = prompt if isinstance(prompt, str) else list(prompt)
        return {"model": self.model, "prompt": prompt, "max_tokens": 16, "temperature": 0, "ignore_eos": True} | more

    def post(self, prompt: Prompt, **more: Any) -> httpx.Response:
        """Ask for a completion; return whatever answer comes."""
        return self.http.post("/v1/completions", json=self.body(prompt, **more))

    def complete(self, prompt: Prompt, **more: Any) -> Completion:
        """Return the answer to a prompt."""
        response = self.post(prompt, **more)
        assert response.status_code == 200, response.text
        choice = response.json()["choices"][0]
        return Completion.of(choice["text"], choice["finish_reason"], response.json()["usage"])

    @contextmanager
    def stream(self, prompt: Prompt, **more: Any) -> Iterator[Stream]:
        """Open a stream; leaving the block hangs up."""
        body = self.body(prompt, **more) | {"stream": True, "stream_options": {"include_usage": True}}
        with self.http.stream("POST", "/v1/completions", json=body) as response:
            assert response.status_code == 200, response.read()
            yield Stream(response)

    @contextmanager
    def unanswered(self, prompt: Prompt, **more: Any) -> Iterator[socket.socket]:
        """Send a request and read nothing of its answer; leaving the block hangs up."""
        content = json.dumps(self.body(prompt, **more)).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
        url = httpx.URL(self.url)
        with socket.create_connection((url.host, url.port or 80), PATIENCE_S) as connection:
            connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            yield connection

    def complete_all(self, prompts: Sequence[Prompt], **more: Any) -> list[Completion]:
        """Stream the answers to all prompts at once."""

        def stream(prompt: Prompt) -> Completion:
            with self.stream(prompt, **more) as events:
                return events.read().completion()

        with ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(stream, prompts))

    def status(self) -> dict[str, Any]:
        """Return what `diptych status --json` prints."""
        status: dict[str, Any] = self.http.get("/diptych/status").json()
        return status

    def worker(self, worker_id: str) -> dict[str, Any]:
        """Return what a worker last said of itself (up to half a second ago)."""
        status: dict[str, Any] = self.status()["workers"][worker_id]["status"]
        return status

    def incarnation(self, worker_id: str) -> int:
        """Return which life of a worker the router knows."""
        incarnation: int = self.status()["workers"][worker_id]["address"]["incarnation"]
        return incarnation

    def wait_until_up(self, worker_id: str) -> None:
        """Fail unless a worker that is down, or soon will be, takes requests soon."""
        eventually(lambda: self.worker(worker_id)["state"] == "ready", f"{worker_id} up")

    def records(self) -> list[dict[str, Any]]:
        """Return the last requests to end."""
        records: list[dict[str, Any]] = self.http.get("/diptych/requests").json()
        return records

    def wait_until_idle(self, timeout_s: float = PATIENCE_S) -> None:
        """Fail unless soon nothing runs or waits, and every block is free or merely cached, of all living workers."""
        begin_s = time.monotonic()

        def is_idle() -> bool:
            status = self.status()
            age_s = time.monotonic() - begin_s  # what a worker said before that tells nothing
            living = [info for info in status["workers"].values() if info["status"]["state"] != "dead"]
            return status["num_requests"] == 0 and all(
                info["heartbeat_age_s"] < age_s and _holds_nothing(info["status"]) for info in living
            )

        eventually(is_idle, f"{self.url} idle", timeout_s)


def _holds_nothing(worker: dict[str, Any]) -> bool:
    num_busy = worker["num_running"] + worker["num_waiting"] + worker["queued_prefill_tokens"]
    num_unused: int = worker["num_free_blocks"] + worker["num_cached_blocks"]
    return num_busy == 0 and num_unused == int(worker["num_blocks"])


Serving = Callable[..., AbstractContextManager[LiveServer]]
"""Serves with the given settings for as long as its block lasts."""
StartServer = Callable[..., LiveServer]
"""Serves with the given settings until the test ends."""
