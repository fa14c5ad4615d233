"""Heads that are too large, or never end."""

import socket
from contextlib import closing
from typing import TYPE_CHECKING

import httpx
import pytest

from diptych.frontend.http_connection import MAX_HEAD_BYTES, MAX_HEADERS

if TYPE_CHECKING:
    from tests.frontend.conftest import Frontend

PATIENCE_S = 20.0
MOST_SENT_BYTES = 20_000_000


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/health", {"X-Long": "x" * MAX_HEAD_BYTES}),
        ("/health", {f"X-{number}": "1" for number in range(MAX_HEADERS + 1)}),
        ("/health?" + "x" * (MAX_HEAD_BYTES - 10_000), {"X-Long": "x" * 10_000}),
    ],
)
def test_what_is_too_large_gets_431(frontend: "Frontend", path: str, headers: dict[str, str]) -> None:
    with frontend.http() as http:
        response = http.get(path, headers=headers)
        assert response.status_code == 431
        assert response.json()["error"]["code"] == "headers_too_large"
        assert http.get("/health").status_code == 200


@pytest.mark.parametrize(
    "endless",
    [
        (b"GET /", b"x" * 1000),
        (b"GET /health HTTP/1.1\r\nX-Long: ", b"x" * 1000),
        (b"GET /health HTTP/1.1\r\n", b"X-Again: 1\r\n" * 100),
        (b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Trailer: ", b"x" * 1000),
        (b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X-Again: 1\r\n" * 100),
        (b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;ext=", b"x" * 1000),
    ],
    ids=["url", "header", "headers", "trailer", "trailers", "chunk extension"],
)
def test_what_never_ends_is_hung_up_on(frontend: "Frontend", endless: tuple[bytes, bytes]) -> None:
    begin, more = endless
    with closing(socket.create_connection(("127.0.0.1", frontend.server.port), PATIENCE_S)) as connection:
        connection.sendall(begin)
        num_sent_bytes = 0
        with pytest.raises(OSError, match=r"reset|pipe"):
            while num_sent_bytes < MOST_SENT_BYTES:
                connection.sendall(more)
                num_sent_bytes += len(more)
    assert num_sent_bytes < MOST_SENT_BYTES


def test_a_large_body_is_no_large_head(frontend: "Frontend") -> None:
    with frontend.http() as http:
        for _ in range(5):  # on one connection
            body = {"model": "smol", "prompt": "Hi", "metadata": {"a": "x" * 500_000}}
            assert http.post("/v1/completions", json=body).status_code == 200


def test_a_body_in_small_pieces_is_no_large_head(frontend: "Frontend") -> None:
    content = b'{"model": "smol", "prompt": "Hi"' + b" " * (2 * MAX_HEAD_BYTES) + b"}"
    pieces = (content[start : start + 5] for start in range(0, len(content), 5))
    with frontend.http() as http:
        headers = {"Content-Type": "application/json"}
        response: httpx.Response = http.post("/v1/completions", content=pieces, headers=headers)
        assert response.status_code == 200
