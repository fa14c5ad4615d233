"""The client reads streams of any server, however they are cut, and says what is wrong with bad ones."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from diptych.bench.completions import ServerApi
from diptych.bench.http_client import Address, HttpError, fetch
from diptych.bench.sample import Sample
from diptych.core.errors import ConfigError

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
Answer = Callable[[bytes], list[bytes | None]]
"""From a request to the pieces to send; None hangs up at once."""


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def stream(*events: Any, end: str = "\n\n") -> bytes:
    lines = "".join(f"data: {event if isinstance(event, str) else json.dumps(event)}{end}" for event in events)
    return HEAD + chunk(lines.encode()) + b"0\r\n\r\n"


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[tuple[Address, list[bytes]]]:
    """Serve fixed bytes; yield the address and the requests so far."""
    requests: list[bytes] = []

    async def on_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0] or 0)
        requests.append(head + await reader.readexactly(length))
        for piece in answer(requests[-1]):
            if piece is None:
                writer.transport.abort()
                return
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    server = await asyncio.start_server(on_client, "127.0.0.1", 0)
    async with server:
        yield Address("127.0.0.1", server.sockets[0].getsockname()[1], "", False), requests


def ask(answer: Answer, timeout_s: float = 20.0, **options: Any) -> tuple[Sample, str, bytes]:
    async def main() -> tuple[Sample, str, bytes]:
        sample = Sample(planned_s=0.0, sent_s=0.0, session=0, turn=0, num_wanted_tokens=7)
        async with serving(answer) as (address, requests):
            api = ServerApi(address, "some-model", **options)
            text = await api.complete(["one", "two", "three"], sample, 0.0, timeout_s)
            return sample, text, requests[0]

    return asyncio.run(main())


USAGE = {"prompt_tokens": 5, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 3}}
EVENTS = [
    {"choices": [{"text": "a"}]},
    {"choices": [{"text": ""}]},
    {"choices": [{"text": " b"}]},
    {"choices": [], "usage": USAGE},
    "[DONE]",
]


@pytest.mark.parametrize("size", [1, 7, 50, 10_000])
@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n"])
def test_a_stream_is_read_however_it_is_cut(size: int, end: str) -> None:
    data = stream(*EVENTS, end=end)
    sample, text, _ = ask(lambda _: [data[begin : begin + size] for begin in range(0, len(data), size)])
    assert (text, sample.error, sample.status) == ("a b", "", 200)
    assert len(sample.token_times_s) == 2
    assert (sample.num_prompt_tokens, sample.num_cached_tokens, sample.num_output_tokens) == (5, 3, 4)
    assert sample.ended_s >= sample.token_times_s[-1]


def test_chats_and_servers_that_do_not_count() -> None:
    deltas = [
        {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"delta": {"content": "x"}}]},
    ]
    sample, text, request = ask(lambda _: [stream(*deltas, "[DONE]")], route="chat")
    assert (text, sample.num_output_tokens, sample.error) == ("x", 1, "")
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert [message["role"] for message in json.loads(body)["messages"]] == ["user", "assistant", "user"]


@pytest.mark.parametrize("ignore_eos", [True, False])
def test_what_is_asked(ignore_eos: bool) -> None:
    _, _, request = ask(lambda _: [stream(*EVENTS)], ignore_eos=ignore_eos)
    body = json.loads(request.partition(b"\r\n\r\n")[2])
    assert body.pop("ignore_eos", False) is ignore_eos
    assert body == {
        "model": "some-model",
        "prompt": "one two three",
        "max_tokens": 7,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


REFUSAL = b'HTTP/1.1 429 Too Many Requests\r\nContent-Length: 25\r\n\r\n{"error": {"message": ""}}'


@pytest.mark.parametrize(
    ("answer", "complaint", "status"),
    [
        ([REFUSAL], 'HTTP 429: {"error"', 429),
        ([stream(EVENTS[0])], "ended without [DONE]", 200),
        ([stream("[DONE]")], "the answer has no text", 200),
        ([stream({"error": {"message": "boom"}})], "the server failed: {", 200),
        ([stream("{no json", "[DONE]")], "an event that is no JSON", 200),
        ([b"SSH-2.0-OpenSSH\r\n\r\n"], "the server sent no HTTP", 0),
        ([HEAD + chunk(b"data: "), None], "the connection broke off", 200),
        ([None], "the connection broke off", 0),
        ([b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"], "HTTP 500: ", 500),
    ],
)
def test_what_goes_wrong_is_said(answer: list[bytes | None], complaint: str, status: int) -> None:
    sample, _, _ = ask(lambda _: answer)
    assert complaint in sample.error
    assert sample.status == status
    assert not sample.is_whole
    assert sample.ended_s > 0


def test_an_answer_that_does_not_end_is_given_up() -> None:
    async def main() -> str:
        has_left = asyncio.Event()

        async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.read(1_000):
                pass  # until the client hangs up
            writer.close()
            has_left.set()

        server = await asyncio.start_server(never, "127.0.0.1", 0)
        sample = Sample(planned_s=0.0, sent_s=0.0, session=0, turn=0, num_wanted_tokens=7)
        async with server:
            address = Address("127.0.0.1", server.sockets[0].getsockname()[1], "", False)
            await ServerApi(address, "m").complete(["x"], sample, 0.0, 0.1)
            await asyncio.wait_for(has_left.wait(), 20.0)
        return sample.error

    assert asyncio.run(main()) == "no whole answer within 0 s"


def test_nobody_listens() -> None:
    with pytest.raises(HttpError, match=r"no connection to 127\.0\.0\.1:9"):
        asyncio.run(fetch(Address("127.0.0.1", 9, "", False), "/v1/models", 5.0))


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://localhost:8000", Address("localhost", 8000, "", False)),
        ("http://localhost:8000/v1/", Address("localhost", 8000, "", False)),
        ("https://api.example/llm/v1", Address("api.example", 443, "/llm", True)),
        ("http://[::1]:80", Address("::1", 80, "", False)),
    ],
)
def test_addresses_are_read(url: str, address: Address) -> None:
    assert Address.parse(url) == address


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://host:port", "http://[::1"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="a server's address is written like"):
        Address.parse(url)


def test_a_key_is_sent() -> None:
    head = Address.parse("http://h", "secret").request("GET", "/v1/models", None)
    assert b"\r\nAuthorization: Bearer secret\r\n" in head
