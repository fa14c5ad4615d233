"""Everything wrong with a request gets a 4xx in OpenAI's shape that names the field; nothing is silently ignored."""

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from tests.frontend.conftest import Frontend, StartFrontend

MODEL = "smol"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
COMPLETION = {"model": MODEL, "prompt": "Hi"}
FUNCTION = {"type": "function", "function": {"name": "f"}}
TOO_LONG = "a b c d " * 20


@pytest.fixture
def http(frontend: "Frontend") -> Iterator[httpx.Client]:
    with frontend.http() as client:
        yield client


def error_of(response: httpx.Response) -> dict[str, Any]:
    """Return the error object, which has exactly OpenAI's fields."""
    body = response.json()
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    return error


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "y": 1}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "Hi", "name": 5}]}, "messages[0].name"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": "Hi", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].id"),
        ({"messages": [{"role": "user", "content": "Hi", "tool_call_id": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant", "content": "Hi", "reasoning": "x"}]}, "messages[0].reasoning"),
        ({"messages": [{"role": "user", "content": "Hi", "mood": None}]}, "messages[0].mood"),
        ({"messages": [{"role": "user", "content": TOO_LONG}]}, "messages"),
        ({"model": 7}, "model"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"seed": 2**63}, "seed"),
        ({"seed": True}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 65}, "max_tokens"),
        ({"max_completion_tokens": 65}, "max_completion_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stop": "x" * 1025}, "stop"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [FUNCTION, FUNCTION]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools[0].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [FUNCTION], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"json": "no json"}}, "structured_outputs"),
        ({"structured_outputs": {"grammar": "::= ::="}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": {"triggers": []}}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a" * 100_001}}, "structured_outputs"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "structured_outputs"),
        ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"logit_bias": {"49152": 1}}, "logit_bias"),
        ({"logit_bias": [5]}, "logit_bias"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids"),
        ({"min_tokens": 70}, "min_tokens"),
        ({"bad_words": [5]}, "bad_words[0]"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 0}, "messages"),
        ({"request_id": "no spaces"}, "request_id"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"best_of": 2}, "best_of"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"chat_template": "x"}, "chat_template"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"store": True}, "store"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"stop_token_ids": [49_152]}, "stop_token_ids"),
        ({"skip_special_tokens": 0}, "skip_special_tokens"),
        ({"prompt": "Hi"}, "prompt"),
        ({"no_such_thing": None}, "no_such_thing"),
    ],
)
def test_a_bad_chat_is_refused_by_the_name_of_its_field(
    frontend: "Frontend", http: httpx.Client, change: dict[str, Any], param: str
) -> None:
    response = http.post("/v1/chat/completions", json=CHAT | change)
    error = error_of(response)
    assert (response.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert not frontend.service.requests


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": [[1], []]}, "prompt"),
        ({"prompt": ["a", [1]]}, "prompt"),
        ({"prompt": ["a"] * 65, "n": 2}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [49_152]}, "prompt"),
        ({"prompt": [10**30]}, "prompt"),
        ({"prompt": [5] * 64}, "prompt"),
        ({"prompt": TOO_LONG}, "prompt"),
        ({"prompt": "a" * 100_000}, "prompt"),
        ({"prompt": [5] * 60, "max_tokens": 5}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": 1}, "echo"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"messages": []}, "messages"),
        ({"max_completion_tokens": 5}, "max_completion_tokens"),
    ],
)
def test_a_bad_completion_is_refused_by_the_name_of_its_field(
    frontend: "Frontend", http: httpx.Client, change: dict[str, Any], param: str
) -> None:
    response = http.post("/v1/completions", json=COMPLETION | change)
    assert (response.status_code, error_of(response)["param"]) == (400, param)
    assert not frontend.service.requests


@pytest.mark.parametrize("too_much", [{"prompt": TOO_LONG}, {"prompt": [5] * 64}, {"prompt": [5], "max_tokens": 64}])
def test_what_does_not_fit_the_context_has_its_own_code(http: httpx.Client, too_much: dict[str, Any]) -> None:
    response = http.post("/v1/completions", json=COMPLETION | too_much)
    assert error_of(response)["code"] == "context_length_exceeded"


OFF: dict[str, Any] = {
    "n": 1,
    "tools": [],
    "tool_choice": "none",
    "response_format": {"type": "text"},
    "logprobs": False,
    "top_logprobs": None,
    "presence_penalty": 0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "logit_bias": {},
    "store": False,
    "service_tier": "auto",
    "user": "bob",
    "metadata": {"a": 1},
    "parallel_tool_calls": True,
    "stop": None,
    "temperature": None,
    "seed": None,
    "stream": None,
    "max_tokens": None,
}


def test_what_is_off_or_harmless_is_accepted(frontend: "Frontend", http: httpx.Client) -> None:
    http.post("/v1/chat/completions", json=CHAT | OFF).raise_for_status()
    sampling = frontend.next_entered().sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (1.0, 1.0, 0, 0.0)


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_a_missing_field_is_named(http: httpx.Client, missing: str) -> None:
    response = http.post("/v1/chat/completions", json={name: CHAT[name] for name in CHAT if name != missing})
    assert (response.status_code, error_of(response)["param"]) == (400, missing)


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b"", "application/json"),
        (b"{", "application/json"),
        (b"[]", "application/json"),
        (b"null", "application/json"),
        (b"\xff\xfe\xfd", "application/json"),
        (b'{"model": "smol", "messages": [{"role": "user", "content": "\xff"}]}', "application/json"),
        (b'{"a": ' * 100_000, "application/json"),
        (b"[" * 100_000 + b"]" * 100_000, "application/json"),
        (b'{"seed": ' + b"9" * 10_000 + b"}", "application/json"),
        (b'{"model": "smol", "messages": [{"role": "user", "content": "\\ud800"}]}', "application/json"),
        (b'{"model": "smol", "\\ud800": 1}', "application/json"),
        (b'{"model": "\\ud800", "prompt": "x", "messages": []}', "application/json"),
        (b'{"model": "smol", "temperature": NaN}', "application/json"),
        (b'{"model": "smol", "temperature": 1e999}', "application/json"),
        (json.dumps(CHAT).encode(), "text/plain"),
        (b"model=smol", "application/x-www-form-urlencoded"),
    ],
)
@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions"])
def test_a_body_that_is_no_request_is_refused(
    http: httpx.Client, route: str, content: bytes, content_type: str
) -> None:
    response = http.post(route, content=content, headers={"content-type": content_type})
    assert response.status_code == 400
    error_of(response)


def test_a_long_mistake_gets_a_short_answer(http: httpx.Client) -> None:
    response = http.post("/v1/chat/completions", json=CHAT | {"x" * 100_000: 1})
    assert response.status_code == 400
    assert len(response.content) < 2000


def test_unknown_routes_and_methods_have_the_same_shape(http: httpx.Client) -> None:
    for method, path, status in (
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/nothing", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/completions", 405),
        ("GET", "/v1/models/", 404),
        ("GET", "/v1/models/other", 404),
    ):
        response = http.request(method, path)
        assert response.status_code == status, path
        error_of(response)


def test_an_unknown_model_is_not_found(http: httpx.Client) -> None:
    response = http.post("/v1/chat/completions", json=CHAT | {"model": "gpt-7"})
    assert (response.status_code, error_of(response)["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("is_announced", [True, False])
def test_a_body_over_the_limit_is_refused(start_frontend: "StartFrontend", is_announced: bool) -> None:
    frontend = start_frontend(max_body_bytes=1000)
    content = json.dumps(CHAT | {"user": "x" * 1000}).encode()
    chunks = [content[:600], content[600:]]
    with frontend.http() as http:
        response = http.post(
            "/v1/chat/completions",
            content=content if is_announced else iter(chunks),
            headers={"content-type": "application/json"},
        )
    assert (response.status_code, error_of(response)["code"]) == (413, "request_too_large")


def test_a_body_that_never_comes_is_given_up(start_frontend: "StartFrontend") -> None:
    frontend = start_frontend(client_timeout_s=0.05)
    with closing(socket.create_connection(("127.0.0.1", frontend.server.port), timeout=20)) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")
