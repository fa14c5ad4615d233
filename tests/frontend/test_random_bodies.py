"""Whatever JSON a route gets, it answers it or refuses it with an error of OpenAI's shape."""

import string
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from diptych.frontend.openai.chat import ChatCompletionRequest
from diptych.frontend.openai.completions import CompletionRequest
from diptych.frontend.openai.responses import ResponseRequest
from diptych.frontend.openai.tokenize import DetokenizeRequest, TokenizeRequest

if TYPE_CHECKING:
    from tests.frontend.conftest import Frontend

MESSAGES = [{"role": "user", "content": "Hi"}]
ROUTES: dict[str, tuple[type, dict[str, Any]]] = {
    "/v1/chat/completions": (ChatCompletionRequest, {"model": "smol", "messages": MESSAGES}),
    "/v1/completions": (CompletionRequest, {"model": "smol", "prompt": "Hi"}),
    "/v1/responses": (ResponseRequest, {"model": "smol", "input": "Hi"}),
    "/tokenize": (TokenizeRequest, {"model": "smol", "prompt": "Hi"}),
    "/detokenize": (DetokenizeRequest, {"model": "smol", "tokens": [5, 6]}),
}
"""Each route's body, and a good one."""

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=8,
)
FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
plausible_values: st.SearchStrategy[Any] = st.sampled_from(
    [
        *(0, 1, 2, -1, 0.5, 1e9, True, False, None, "", "a", "Hi", "auto", "none", "required", "text"),
        *([], {}, [1, 2], ["a"], [[1]], [[]], {"a": 1}, {"5": 1}, {"include_usage": True}),
        *({"type": "text"}, {"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "a"}}),
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "array"}}},
        *({"regex": "a+"}, {"choice": ["a", "b"]}, {"json": {"type": "object"}}, {"grammar": "root ::= 'a'"}),
        *([{"type": "function", "function": FUNCTION}], [{"type": "function", **FUNCTION}], FUNCTION),
        *({"type": "function", "function": {"name": "f"}}, {"format": {"type": "json_object"}}),
        *(MESSAGES, [{"role": "tool", "content": "a", "tool_call_id": "1"}], [{"role": "assistant", "content": None}]),
        [{"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "image_url", "image_url": "x"}]}],
        [{"type": "function_call_output", "call_id": "1", "output": "a"}],
    ]
)


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, Any]:
    """Draw a route, and a body that may be anything, or a good one with a few fields changed."""
    route = draw(st.sampled_from(sorted(ROUTES)))
    kind, good = ROUTES[route]
    known = st.sampled_from(sorted(getattr(kind, "model_fields")))  # noqa: B009  of every pydantic model
    names = known | st.text(string.ascii_lowercase + "_", max_size=12)
    changes = draw(st.dictionaries(names, plausible_values | json_values, max_size=4))
    match draw(st.sampled_from(["changed", "changed", "changed", "fields only", "any"])):
        case "changed":
            return route, good | changes
        case "fields only":
            return route, changes
        case _:
            return route, draw(json_values)


@pytest.fixture
def http(frontend: "Frontend") -> Iterator[httpx.Client]:
    with frontend.http() as client:
        yield client


def test_every_route_that_takes_a_body_is_here(http: httpx.Client) -> None:
    schema = http.get("/openapi.json").json()
    posts = {path for path, methods in schema["paths"].items() if "post" in methods}
    drains = {path for path in posts if path.startswith(("/diptych/workers/", "/diptych/nodes/"))}
    assert posts - drains == ROUTES.keys()


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests())
def test_any_json_gets_an_answer_or_an_error_of_openais_shape(
    frontend: "Frontend", http: httpx.Client, request_: tuple[str, Any]
) -> None:
    route, body = request_
    response = http.post(route, json=body)
    if response.status_code == httpx.codes.OK:
        assert '"error":{' not in response.text
        return
    assert 400 <= response.status_code < 500, response.text
    content = response.json()
    assert content.keys() == {"error"}
    assert content["error"].keys() == {"message", "type", "param", "code"}
    assert content["error"]["message"]
