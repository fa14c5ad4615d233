"""A client that notes when each token came, on the machine's monotonic clock: the one of the server's timelines.

Requests are greedy unless they say otherwise, and all go on after an end-of-sequence token, so that sizes are as asked.
"""

import asyncio
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

from diptych.core.errors import BenchError
from diptych.core.events import RequestRecord

REQUEST_TIMEOUT_S = 600.0
POLL_S = 0.02
DATA, DONE = b"data: ", b"[DONE]"


class _Delta(msgspec.Struct):
    content: str = ""


class _Choice(msgspec.Struct):
    finish_reason: str | None = None
    text: str = ""
    delta: _Delta | None = None
    token_ids: list[int] = []


class _Event(msgspec.Struct):
    id: str = ""
    choices: list[_Choice] = []
    error: Any = None


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_records = msgspec.json.Decoder(list[RequestRecord]).decode


@dataclass(slots=True)
class Trace:
    """One answer as its client saw it; seconds of the machine's monotonic clock. Grows while the answer comes."""

    sent_s: float
    request_id: str = ""
    first_byte_s: float = 0.0
    """When the response's head was here, which the server sends with the first token."""
    token_times_s: list[float] = field(default_factory=list)
    """A token that completes no character makes no event, so there may be fewer than tokens."""
    token_ids: list[int] = field(default_factory=list)
    """Where asked for with `return_token_ids`."""
    pieces: list[str] = field(default_factory=list)
    """The text, as it came."""
    ended_s: float = 0.0

    @property
    def ttft_s(self) -> float:
        """From sending the request to the first token that shows."""
        return self.token_times_s[0] - self.sent_s


Message = dict[str, str]
"""Of a chat: role and content."""


class LoadClient:
    """Talks to one server. An async context manager."""

    def __init__(self, url: str, model: str) -> None:
        self._model = model
        self._http = httpx.AsyncClient(
            base_url=url,
            timeout=REQUEST_TIMEOUT_S,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def complete(
        self, prompt: str | list[int], max_tokens: int, trace: Trace | None = None, **parameters: Any
    ) -> Trace:
        """Stream a completion to its end; a given `trace` can be watched meanwhile, `parameters` go into the body.

        Raises: BenchError if the server refuses or fails.
        """
        return await self._stream("/v1/completions", parameters | {"prompt": prompt}, max_tokens, trace)

    async def chat(self, text: str, max_tokens: int) -> Trace:
        """Stream the answer to one user message.

        Raises: BenchError if the server refuses or fails.
        """
        return await self.converse([{"role": "user", "content": text}], max_tokens)

    async def converse(self, messages: list[Message], max_tokens: int, **parameters: Any) -> Trace:
        """Stream the answer to a chat's last message; `parameters` go into the body.

        Raises: BenchError if the server refuses or fails.
        """
        return await self._stream("/v1/chat/completions", parameters | {"messages": messages}, max_tokens, None)

    async def _stream(self, path: str, body: dict[str, Any], max_tokens: int, trace: Trace | None) -> Trace:
        fixed = {"model": self._model, "max_tokens": max_tokens, "ignore_eos": True, "stream": True}
        body = {"temperature": 0} | body | fixed
        trace = trace or Trace(0.0)
        trace.sent_s = time.monotonic()
        try:
            async with self._http.stream("POST", path, json=body) as response:
                trace.first_byte_s = time.monotonic()
                if response.status_code != httpx.codes.OK:
                    text = (await response.aread()).decode(errors="replace")
                    raise BenchError(f"the server answered {response.status_code}: {text[:200]}")
                trace.request_id = response.headers["X-Request-Id"]
                await _read_events(response, trace)
        except httpx.HTTPError as error:
            raise BenchError(f"the connection to the server failed: {error!r}") from None
        return trace

    async def status(self) -> dict[str, Any]:
        """Return what /diptych/status answers."""
        response = await self._http.get("/diptych/status")
        content: dict[str, Any] = response.json()
        return content

    async def wait_until_idle(self) -> None:
        """Return when the server has no request left (aborted ones take a step to end)."""
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            while (await self.status())["num_requests"]:  # noqa: ASYNC110  another process's state
                await asyncio.sleep(POLL_S)

    async def records_of(self, traces: list[Trace]) -> list[RequestRecord]:
        """Return the server's records of `traces`, in their order, once all of them have ended there.

        Raises: BenchError if one is not to be found.
        """
        await self.wait_until_idle()
        response = await self._http.get("/diptych/requests")
        by_id = {record.request_id: record for record in _decode_records(response.content)}
        missing = [trace.request_id for trace in traces if trace.request_id not in by_id]
        if missing:
            raise BenchError(f"the server forgot {len(missing)} requests before they were looked up; ask for fewer")
        return [by_id[trace.request_id] for trace in traces]


async def _read_events(response: httpx.Response, trace: Trace) -> None:
    rest = b""
    async for data in response.aiter_raw():
        now_s = time.monotonic()
        *lines, rest = (rest + data).split(b"\n\n")
        for line in lines:
            _note_event(line.removeprefix(DATA), trace, now_s)
    if not trace.ended_s:
        raise BenchError(f"the answer to {trace.request_id} broke off after {len(trace.token_times_s)} tokens")


def _note_event(payload: bytes, trace: Trace, now_s: float) -> None:
    if payload == DONE:
        trace.ended_s = now_s
        return
    event = _decode_event(payload)
    if event.error is not None:
        raise BenchError(f"the server failed: {event.error}")
    for choice in event.choices:
        trace.token_ids += choice.token_ids
        piece = choice.text or ("" if choice.delta is None else choice.delta.content)
        if piece:
            trace.token_times_s.append(now_s)
            trace.pieces.append(piece)


class Background:
    """Answers that run while something else is measured; leaving it hangs up on them."""

    def __init__(self, client: LoadClient, prompts: list[str], max_tokens: int) -> None:
        self._client = client
        self._prompts = prompts
        self._max_tokens = max_tokens
        self.traces = [Trace(0.0) for _ in prompts]
        self._tasks: list[asyncio.Task[Trace]] = []

    async def __aenter__(self) -> Self:
        """Start all answers."""
        self._tasks = [
            asyncio.create_task(self._client.complete(prompt, self._max_tokens, trace))
            for prompt, trace in zip(self._prompts, self.traces, strict=True)
        ]
        return self

    async def wait_until_all_write(self, num_tokens: int) -> None:
        """Return when every answer has brought `num_tokens` tokens.

        Raises: BenchError if one ends first.
        """
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            while any(len(trace.token_times_s) < num_tokens for trace in self.traces):
                self.require_running()
                await asyncio.sleep(POLL_S)

    def require_running(self) -> None:
        """Raise BenchError if an answer has ended: what was measured was not what it should be."""
        for task in self._tasks:
            if task.done():
                task.result()
                raise BenchError("a background answer ended before the measurement did; ask for fewer requests")

    async def __aexit__(self, *_: object) -> None:
        """Hang up, and return when the server has nothing left to do."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.wait_until_idle()
