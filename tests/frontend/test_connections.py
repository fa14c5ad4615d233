"""How clients and proxies connect: under a path, from other origins, pipelined, idle in great numbers."""

import json
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from tests.frontend.conftest import Frontend, StartFrontend

COMPLETION = {"model": "smol", "prompt": "Hi"}
NUM_IDLE = 1000


@pytest.fixture
def http(frontend: "Frontend") -> Iterator[httpx.Client]:
    with frontend.http() as client:
        yield client


@pytest.mark.parametrize("root_path", ["/llm", "/llm/", "/deep/er"])
def test_a_proxy_may_have_the_server_under_a_path(start_frontend: "StartFrontend", root_path: str) -> None:
    frontend = start_frontend(root_path=root_path)
    prefix = root_path.rstrip("/")
    with frontend.http() as http:
        for path in ("/v1/models", f"{prefix}/v1/models"):  # a proxy that takes the path away, and one that does not
            assert http.get(path).json()["data"][0]["id"] == "smol"
        assert http.post(f"{prefix}/v1/completions", json=COMPLETION).status_code == 200
        assert f'"{prefix}/openapi.json"' in http.get(f"{prefix}/docs").text.replace("'", '"')
        assert http.get("/llmother/v1/models").status_code == 404


def test_web_pages_of_other_origins_may_not_call_by_default(http: httpx.Client) -> None:
    response = http.get("/v1/models", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in response.headers
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    assert http.options("/v1/completions", headers=preflight).status_code == 405


def test_web_pages_of_named_origins_may_call(start_frontend: "StartFrontend") -> None:
    frontend = start_frontend(cors_origins=("https://chat.example",))
    with frontend.http() as http:
        preflight = {
            "Origin": "https://chat.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        allowed = http.options("/v1/chat/completions", headers=preflight)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://chat.example"
        answer = http.post("/v1/completions", json=COMPLETION, headers={"Origin": "https://chat.example"})
        assert answer.headers["access-control-allow-origin"] == "https://chat.example"
        other = http.post("/v1/completions", json=COMPLETION, headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("stream", [False, True])
def test_answers_are_never_compressed(http: httpx.Client, stream: bool) -> None:
    body = COMPLETION | {"stream": stream}
    response = http.post("/v1/completions", json=body, headers={"Accept-Encoding": "gzip, br, zstd"})
    assert "content-encoding" not in response.headers
    if stream:
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-accel-buffering"] == "no"


def test_a_connection_is_used_again(frontend: "Frontend", http: httpx.Client) -> None:
    ports = set()
    for stream in (False, True, False):
        response = http.post("/v1/completions", json=COMPLETION | {"stream": stream})
        ports.add(response.extensions["network_stream"].get_extra_info("client_addr"))
        assert response.status_code == 200
    assert len(ports) == 1


def test_pipelined_requests_are_answered_in_order(frontend: "Frontend") -> None:
    frontend.say(" there")
    bodies = [COMPLETION | {"prompt": f"number {number}", "echo": True, "stream": number == 2} for number in range(4)]
    sent = b""
    for body in bodies:
        content = json.dumps(body).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        sent += f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
    sent += b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with closing(socket.create_connection(("127.0.0.1", frontend.server.port), timeout=20)) as connection:
        connection.sendall(sent)
        received = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    places = [received.index(f"number {number}") for number in range(4)] + [received.index('"version"')]
    assert places == sorted(places)
    assert received.count("HTTP/1.1 200 OK") == 5


def test_a_thousand_idle_connections_hinder_nobody(frontend: "Frontend", http: httpx.Client) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4 * NUM_IDLE)), hard))
    with ExitStack() as connections:
        for number in range(NUM_IDLE):
            idle = connections.enter_context(socket.create_connection(("127.0.0.1", frontend.server.port), timeout=20))
            if number % 2:  # half of them have been used
                idle.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                assert idle.recv(4096).startswith(b"HTTP/1.1 200")
        assert http.post("/v1/completions", json=COMPLETION).status_code == 200
        assert http.post("/v1/completions", json=COMPLETION | {"stream": True}).text.endswith("[DONE]\n\n")


def test_texts_and_tokens_back_and_forth(frontend: "Frontend", http: httpx.Client) -> None:
    told = http.post("/tokenize", json={"prompt": "Grüße 日本", "return_token_strs": True}).json()
    token_ids = frontend.tokenizer.encode("Grüße 日本")
    assert (told["tokens"], told["count"], told["max_model_len"]) == (token_ids, len(token_ids), 64)
    assert len(told["token_strs"]) == len(token_ids)
    assert http.post("/detokenize", json={"model": "smol", "tokens": token_ids}).json() == {"prompt": "Grüße 日本"}
    chat = http.post("/tokenize", json={"model": "smol", "messages": [{"role": "user", "content": "hi"}]}).json()
    shown = http.post("/detokenize", json={"tokens": chat["tokens"]}).json()["prompt"]
    assert shown.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert http.post("/tokenize", json={"prompt": "a", "messages": []}).status_code == 400
    assert http.post("/tokenize", json={}).status_code == 400
    assert http.post("/tokenize", json={"model": "other", "prompt": "a"}).status_code == 404
    assert http.post("/detokenize", json={"tokens": [10**6]}).status_code == 400
    assert http.get("/version").json()["version"]
