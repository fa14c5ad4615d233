"""One streamed completion over OpenAI's API: what is sent, and what its events say."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from diptych.bench.http_client import Address, HttpError, exchange
from diptych.bench.sample import Sample

ApiRoute = Literal["completions", "chat"]
MAX_ERROR_CHARACTERS = 300
HTTP_OK = 200


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Event).decode


@dataclass(frozen=True, slots=True)
class ServerApi:
    """A server, and how it is asked."""

    address: Address
    model: str
    route: ApiRoute = "completions"
    ignore_eos: bool = True
    """Answers get the length that the plan says. OpenAI itself knows no such parameter."""

    async def complete(self, said: list[str], sample: Sample, begin_s: float, timeout_s: float) -> str:
        """Ask for the answer to what was said (texts of user and model in turn); fill `sample`; return the answer.

        Never raises for what the server does: `sample.error` says it.
        """
        reader = _Reader(sample, begin_s)
        path = "/v1/chat/completions" if self.route == "chat" else "/v1/completions"
        body = self._body(said, sample.num_wanted_tokens)
        try:
            async with (
                asyncio.timeout(timeout_s),
                exchange(self.address, "POST", path, body, reader.push) as opened,
            ):
                try:
                    await opened.wait_for_end()
                finally:
                    sample.status = opened.status
        except HttpError as error:
            sample.error = str(error)
        except TimeoutError:
            sample.error = f"no whole answer within {timeout_s:.0f} s"
        reader.finish()
        sample.ended_s = time.perf_counter() - begin_s
        return reader.text

    def _body(self, said: list[str], max_tokens: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.ignore_eos:
            body["ignore_eos"] = True
        if self.route == "chat":
            roles = ("user", "assistant")
            body["messages"] = [{"role": roles[index % 2], "content": text} for index, text in enumerate(said)]
        else:
            body["prompt"] = " ".join(said)
        return body


class _Reader:
    """Reads server-sent events as they come, however they are cut."""

    def __init__(self, sample: Sample, begin_s: float) -> None:
        self._sample = sample
        self._begin_s = begin_s
        self._rest = b""
        self._head = b""
        self._is_done = False
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self._pieces)

    def push(self, data: bytes) -> None:
        """Take in a piece of the body."""
        now_s = time.perf_counter() - self._begin_s
        if len(self._head) < MAX_ERROR_CHARACTERS:
            self._head += data[:MAX_ERROR_CHARACTERS]
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._on_event(line[5:].strip(), now_s)

    def _on_event(self, content: bytes, now_s: float) -> None:
        sample = self._sample
        if content == b"[DONE]":
            self._is_done = True
            return
        try:
            event = _decode(content)
        except msgspec.DecodeError:
            sample.error = sample.error or f"an event that is no JSON of OpenAI's: {_short(content)}"
            return
        if event.error is not None:
            sample.error = f"the server failed: {_short(content)}"
        for choice in event.choices:
            text = choice.text if choice.delta is None else choice.delta.content
            if text:
                sample.token_times_s.append(now_s)
                self._pieces.append(text)
        if event.usage is not None:
            sample.num_prompt_tokens = event.usage.prompt_tokens
            sample.num_output_tokens = event.usage.completion_tokens
            details = event.usage.prompt_tokens_details
            sample.num_cached_tokens = (details.cached_tokens or 0) if details is not None else 0

    def finish(self) -> None:
        """Say what is wrong with an answer that has ended."""
        sample = self._sample
        if sample.error:
            return
        if sample.status != HTTP_OK:
            sample.error = f"HTTP {sample.status}: {_short(self._head)}"
        elif not self._is_done:
            sample.error = "the stream ended without [DONE]"
        elif not sample.token_times_s:
            sample.error = "the answer has no text"
        sample.num_output_tokens = sample.num_output_tokens or len(sample.token_times_s)


def _short(content: bytes) -> str:
    return content[:MAX_ERROR_CHARACTERS].decode(errors="replace")
