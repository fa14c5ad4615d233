"""What clients of OpenAI's API get, from raw HTTP and from the `openai` package."""

import asyncio
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from diptych.core.errors import OverloadedError, UnavailableError
from diptych.core.events import FinishReason

if TYPE_CHECKING:
    from tests.frontend.conftest import Frontend

MODEL = "smol"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Say hello."}]}
COMPLETION = {"model": MODEL, "prompt": "Once upon a time"}


@pytest.fixture
def http(frontend: "Frontend") -> Iterator[httpx.Client]:
    with frontend.http() as client:
        yield client


@pytest.fixture
def client(frontend: "Frontend") -> Iterator[openai.OpenAI]:
    with frontend.openai() as client:
        yield client


def events_of(response: httpx.Response) -> list[Any]:
    """Parse a whole stream of server-sent events; [DONE] stays text."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_a_chat_answer_has_openais_shape(frontend: "Frontend", http: httpx.Client) -> None:
    token_ids = frontend.say("Hello there!", num_cached_tokens=32)
    response = http.post("/v1/chat/completions", json=CHAT)
    body = response.json()
    request = frontend.next_entered()
    assert body["id"] == request.request_id == response.headers["x-request-id"]
    assert body["id"].startswith("chatcmpl-")
    assert body["object"] == "chat.completion"
    assert body["model"] == MODEL
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello there!", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ]
    num_prompt_tokens = len(request.prompt_token_ids)
    assert body["usage"] == {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": len(token_ids),
        "total_tokens": num_prompt_tokens + len(token_ids),
        "prompt_tokens_details": {"cached_tokens": 32},
    }
    assert frontend.next_left().was_complete


def test_usage_tells_what_was_loaded_from_disk(frontend: "Frontend", http: httpx.Client) -> None:
    frontend.say("Hello there!", num_cached_tokens=96, num_loaded_tokens=64)
    usage = http.post("/v1/chat/completions", json=CHAT).json()["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 96, "loaded_tokens": 64}


def test_a_completion_has_openais_shape(frontend: "Frontend", http: httpx.Client) -> None:
    frontend.say(" there was a token.")
    body = http.post("/v1/completions", json=COMPLETION).json()
    assert body["id"].startswith("cmpl-")
    assert body["object"] == "text_completion"
    end = {"logprobs": None, "finish_reason": "stop", "stop_reason": None}
    assert body["choices"] == [{"index": 0, "text": " there was a token."} | end]


def test_a_chat_stream_names_the_role_first_and_ends_with_done(frontend: "Frontend", http: httpx.Client) -> None:
    frontend.say("Grüße 日本 😀!", num_cached_tokens=7)
    response = http.post(
        "/v1/chat/completions", json=CHAT | {"stream": True, "stream_options": {"include_usage": True}}
    )
    *chunks, usage, done = events_of(response)
    assert done == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk["id"] for chunk in [*chunks, usage]} == {response.headers["x-request-id"]}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[-1] == {}
    assert "".join(delta["content"] for delta in deltas[:-1]) == "Grüße 日本 😀!"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert [chunk["usage"] for chunk in chunks] == [None] * len(chunks)
    assert usage["choices"] == []
    assert usage["usage"]["prompt_tokens_details"] == {"cached_tokens": 7}


def test_a_stream_has_no_usage_unless_asked(frontend: "Frontend", http: httpx.Client) -> None:
    frontend.say("Hi.")
    for route, body in (("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)):
        *chunks, _ = events_of(http.post(route, json=body | {"stream": True}))
        assert all(chunk["choices"] and "usage" not in chunk for chunk in chunks)


def test_max_tokens_ends_with_length(frontend: "Frontend", http: httpx.Client) -> None:
    frontend.say("one two three four", reason=FinishReason.LENGTH)
    body = http.post("/v1/completions", json=COMPLETION | {"max_tokens": 2}).json()
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("num_tokens_together", [1, 3, 100])
@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_is_cut_and_the_request_aborted(
    frontend: "Frontend", http: httpx.Client, num_tokens_together: int, stream: bool
) -> None:
    said = "The answer is 42. Question: and so on"
    token_ids = frontend.say(said, num_tokens_together=num_tokens_together, num_cached_tokens=32)
    stop = [" Quest", "never"]
    num_tokens = next(
        n for n in range(len(token_ids)) if " Quest" in frontend.tokenizer.decode(token_ids[: n + 1])
    )  # completed by this token
    usage_of = {"stream_options": {"include_usage": True}} if stream else {}
    response = http.post("/v1/completions", json=COMPLETION | {"stop": stop, "stream": stream} | usage_of)
    if stream:
        *chunks, usage, _ = events_of(response)
        text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
        end = chunks[-1]["choices"][0]
    else:
        usage = response.json()
        text = usage["choices"][0]["text"]
        end = usage["choices"][0]
    assert text == "The answer is 42."
    assert (end["finish_reason"], end["stop_reason"]) == ("stop", " Quest")
    assert usage["usage"]["completion_tokens"] == num_tokens + 1
    assert usage["usage"]["prompt_tokens_details"] == {"cached_tokens": 32}
    assert frontend.next_left().stopped == {0}


def test_what_could_have_become_a_stop_string_is_shown_at_the_end(frontend: "Frontend", http: httpx.Client) -> None:
    frontend.say("That is the en")
    body = http.post("/v1/completions", json=COMPLETION | {"stop": "end"}).json()
    assert body["choices"][0]["text"] == "That is the en"


def test_sampling_parameters_reach_the_service(frontend: "Frontend", http: httpx.Client) -> None:
    parameters = {"temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "seed": 7, "ignore_eos": True}
    http.post("/v1/chat/completions", json=CHAT | parameters | {"max_completion_tokens": 5}).raise_for_status()
    sampling = frontend.next_entered().sampling
    assert {name: getattr(sampling, name) for name in parameters} == parameters
    assert sampling.max_tokens == 5


def test_an_empty_answer_is_an_answer(frontend: "Frontend", http: httpx.Client) -> None:
    frontend.say("")
    body = http.post("/v1/chat/completions", json=CHAT).json()
    assert body["choices"][0]["message"]["content"] == ""
    *chunks, done = events_of(http.post("/v1/chat/completions", json=CHAT | {"stream": True}))
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"


def test_the_openai_package_chats(frontend: "Frontend", client: openai.OpenAI) -> None:
    frontend.say("Hello there!", num_cached_tokens=3)
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hi"}])
    assert answer.choices[0].message.content == "Hello there!"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    history = [{"role": "user", "content": "Hi"}, answer.choices[0].message.model_dump(), CHAT["messages"][0]]
    again = client.chat.completions.create(model=MODEL, messages=history)  # type: ignore[arg-type]
    assert again.choices[0].finish_reason == "stop"


def test_the_openai_package_streams_a_chat(frontend: "Frontend", client: openai.OpenAI) -> None:
    frontend.say("Hello there!")
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello there!"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(frontend.tokenizer.encode("Hello there!"))


def test_the_openai_package_completes(frontend: "Frontend", client: openai.OpenAI) -> None:
    frontend.say(" end.")
    assert client.completions.create(model=MODEL, prompt="The").choices[0].text == " end."
    stream = client.completions.create(model=MODEL, prompt=[1, 2, 3], stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == " end."


def test_the_asynchronous_openai_package_serves_several_at_once(frontend: "Frontend") -> None:
    frontend.say("Hello there!")

    async def one(client: openai.AsyncOpenAI, *, stream: bool) -> str:
        messages: Any = [{"role": "user", "content": "Hi"}]
        if not stream:
            answer = await client.chat.completions.create(model=MODEL, messages=messages)
            return answer.choices[0].message.content or ""
        chunks = await client.chat.completions.create(model=MODEL, messages=messages, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    async def several() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{frontend.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*[one(client, stream=index % 2 == 0) for index in range(8)])

    assert asyncio.run(several()) == ["Hello there!"] * 8


def test_the_openai_package_raises_its_own_errors(frontend: "Frontend", client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as not_found:
        client.completions.create(model="other", prompt="x")
    assert not_found.value.code == "model_not_found"
    frontend.service.refusal = OverloadedError("the queue is full; try again", retry_after_s=2.4)
    with pytest.raises(openai.RateLimitError) as overloaded:
        client.completions.create(model=MODEL, prompt="x")
    assert overloaded.value.response.headers["retry-after"] == "3"
    frontend.service.refusal = UnavailableError("no worker is ready; wait for /ready", retry_after_s=0.2)
    with pytest.raises(openai.InternalServerError) as unavailable:
        client.completions.create(model=MODEL, prompt="x", stream=True)
    assert unavailable.value.status_code == 503
    assert unavailable.value.response.headers["retry-after"] == "1"


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_before_the_first_token_is_a_plain_http_error(
    frontend: "Frontend", http: httpx.Client, stream: bool
) -> None:
    frontend.say_and_raise("", UnavailableError("all workers died"))
    response = http.post("/v1/chat/completions", json=CHAT | {"stream": stream})
    assert response.status_code == 503
    assert response.json()["error"] == {
        "message": "all workers died",
        "type": "server_error",
        "param": None,
        "code": "unavailable",
    }


def test_an_error_in_mid_stream_is_an_event_and_no_done(frontend: "Frontend", client: openai.OpenAI) -> None:
    frontend.say_and_raise("Hello", UnavailableError("all workers died"))
    with frontend.http() as http:
        response = http.post("/v1/chat/completions", json=CHAT | {"stream": True})
    *chunks, last = events_of(response)
    assert chunks[-1]["choices"][0]["delta"]["content"] == "Hello"
    assert last == {
        "error": {"message": "all workers died", "type": "server_error", "param": None, "code": "unavailable"}
    }
    with pytest.raises(openai.APIError, match="all workers died"):
        list(client.completions.create(model=MODEL, prompt="x", stream=True))


@pytest.mark.parametrize("said", ["", "Hello"])
def test_a_defect_is_logged_and_tells_no_detail(
    frontend: "Frontend", http: httpx.Client, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    frontend.say_and_raise(said, ZeroDivisionError("secret detail"))
    response = http.post("/v1/chat/completions", json=CHAT | {"stream": True})
    error = events_of(response)[-1]["error"] if said else response.json()["error"]
    assert response.status_code == (200 if said else 500)
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "secret" not in response.text
    assert any(record.exc_info and "secret detail" in str(record.exc_info[1]) for record in caplog.records)


def test_models_are_listed_and_described(client: openai.OpenAI) -> None:
    (card,) = client.models.list()
    assert (card.id, card.object, card.owned_by) == (MODEL, "model", "diptych")
    assert card.model_dump()["max_model_len"] == 64
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("vendor/other")


def test_ready_follows_the_cluster_and_health_does_not(frontend: "Frontend", http: httpx.Client) -> None:
    assert http.get("/ready").status_code == 200
    frontend.service.health = "starting"
    response = http.get("/ready")
    assert (response.status_code, response.json()) == (503, {"status": "starting"})
    assert http.get("/health").status_code == 200


def test_the_cluster_and_its_past_can_be_seen(http: httpx.Client) -> None:
    status = http.get("/diptych/status").json()
    assert status["workers"]["mixed-0"]["status"]["num_blocks"] == 8
    (record,) = http.get("/diptych/requests").json()
    assert record["timeline"] == {"arrived": 1.0, "finished": 2.0}


def test_the_schema_tells_what_can_be_sent(http: httpx.Client) -> None:
    schema = http.get("/openapi.json").json()
    chat = schema["components"]["schemas"]["ChatCompletionRequest"]
    assert {"messages", "model", "max_completion_tokens", "stop", "min_p"} <= chat["properties"].keys()
    assert chat["additionalProperties"] is False
    assert "functions" not in chat["properties"]
