"""Several answers, several prompts, log-probabilities, echoed prompts: as OpenAI and vLLM send them."""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from diptych.core.errors import UnavailableError
from diptych.core.events import FinishReason
from diptych.core.request import Request
from diptych.core.service import AnswerPart, EndOut, StartOut, TokensOut

if TYPE_CHECKING:
    from tests.frontend.conftest import Frontend

CHAT = {"model": "smol", "messages": [{"role": "user", "content": "Say hello."}]}
COMPLETION = {"model": "smol", "prompt": "Once upon"}


@pytest.fixture
def http(frontend: "Frontend") -> Iterator[httpx.Client]:
    with frontend.http() as client:
        yield client


def whole(http: httpx.Client, route: str, body: dict[str, Any]) -> dict[str, Any]:
    response = http.post(route, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def chunks(http: httpx.Client, route: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all chunks of a stream that ends as it should."""
    text = http.post(route, json=body | {"stream": True, "stream_options": {"include_usage": True}}).text
    events = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


def test_choices_of_a_chat_are_told_apart(frontend: "Frontend", http: httpx.Client) -> None:
    num_tokens = len(frontend.say("Hi you."))
    answer = whole(http, "/v1/chat/completions", CHAT | {"n": 3})
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in answer["choices"]} == {"Hi you."}
    assert answer["usage"]["completion_tokens"] == 3 * num_tokens
    assert frontend.next_entered().num_choices == 3

    texts, ends = dict.fromkeys(range(3), ""), list[int]()
    *streamed, usage = chunks(http, "/v1/chat/completions", CHAT | {"n": 3})
    for chunk in streamed:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
        if choice["finish_reason"]:
            ends.append(choice["index"])
    assert set(texts.values()) == {"Hi you."}
    assert sorted(ends) == [0, 1, 2]
    assert [chunk["choices"][0]["delta"] for chunk in streamed[:3]] == [{"role": "assistant", "content": ""}] * 3
    assert usage["usage"] == answer["usage"]


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_and_their_choices_are_counted_through(frontend: "Frontend", http: httpx.Client, stream: bool) -> None:
    frontend.say(" end", num_cached_tokens=2)
    body = COMPLETION | {"prompt": ["one", "two three", "four"], "n": 2}
    num_prompt_tokens = sum(len(frontend.tokenizer.encode(prompt)) for prompt in ("one", "two three", "four"))
    if stream:
        *streamed, usage = chunks(http, "/v1/completions", body)
        texts = dict.fromkeys(range(6), "")
        for chunk in streamed:
            texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
        assert set(texts.values()) == {" end"}
    else:
        usage = whole(http, "/v1/completions", body)
        assert [choice["index"] for choice in usage["choices"]] == list(range(6))
    assert usage["usage"]["prompt_tokens"] == num_prompt_tokens
    assert usage["usage"]["prompt_tokens_details"] == {"cached_tokens": 6}
    entered = [frontend.next_entered() for _ in range(3)]
    assert len({request.request_id for request in entered}) == 3


def test_when_one_prompt_fails_the_others_are_given_up(frontend: "Frontend", http: httpx.Client) -> None:
    async def script(request: Request) -> AsyncGenerator[AnswerPart, None]:
        if len(request.prompt_token_ids) > 1:
            raise UnavailableError("gone")
        yield StartOut(0)
        await asyncio.Event().wait()

    frontend.service.script = script
    response = http.post("/v1/completions", json=COMPLETION | {"prompt": ["one", "two three"]})
    assert response.status_code == 503
    assert {frontend.next_left().was_complete for _ in range(2)} == {False}


def test_a_stop_string_ends_its_choice_alone(frontend: "Frontend", http: httpx.Client) -> None:
    stopping, going = (frontend.tokenizer.encode(text) for text in ("one STOP two", "three four five six seven"))

    async def script(_: Request) -> AsyncGenerator[AnswerPart, None]:
        yield StartOut(0)
        for index in range(max(len(stopping), len(going))):
            for choice, said in enumerate((stopping, going)):
                if index < len(said):
                    yield TokensOut([said[index]], choice)
        yield EndOut(FinishReason.LENGTH, 1)

    frontend.service.script = script
    answer = whole(http, "/v1/completions", COMPLETION | {"n": 2, "stop": ["STOP"]})
    assert [choice["text"] for choice in answer["choices"]] == ["one ", "three four five six seven"]
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["stop", "length"]
    assert [choice["stop_reason"] for choice in answer["choices"]] == ["STOP", None]
    assert frontend.next_left().stopped == {0}


def test_logprobs_of_a_chat(frontend: "Frontend", http: httpx.Client) -> None:
    token_ids = frontend.say("Käse 👩‍🚀")
    names = [frontend.tokenizer.token_bytes(token_id) for token_id in token_ids]
    body = CHAT | {"logprobs": True, "top_logprobs": 2}
    content = whole(http, "/v1/chat/completions", body)["choices"][0]["logprobs"]["content"]
    assert [bytes(entry["bytes"]) for entry in content] == names
    assert [entry["token"] for entry in content] == [name.decode("utf-8", "replace") for name in names]
    assert {entry["logprob"] for entry in content} == {-1.0}
    likeliest = [frontend.tokenizer.token_bytes(token_id).decode("utf-8", "replace") for token_id in (100, 101)]
    for entry in content:
        assert [(top["token"], top["logprob"]) for top in entry["top_logprobs"]] == [
            (likeliest[0], -2.0),
            (likeliest[1], -3.0),
        ]
    streamed = [
        entry
        for chunk in chunks(http, "/v1/chat/completions", body)[:-1]
        for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert streamed == content


def test_logprobs_of_a_completion(frontend: "Frontend", http: httpx.Client) -> None:
    token_ids = frontend.say(" a time ago")
    names = [frontend.tokenizer.decode([token_id]) for token_id in token_ids]
    told = whole(http, "/v1/completions", COMPLETION | {"logprobs": 1})["choices"][0]["logprobs"]
    assert told["tokens"] == names
    assert told["token_logprobs"] == [-1.0] * len(names)
    assert told["text_offset"] == [len("".join(names[:index])) for index in range(len(names))]
    likeliest = frontend.tokenizer.decode([100])
    assert told["top_logprobs"] == [{likeliest: -2.0, name: -1.0} for name in names], "the chosen one is always there"
    streamed = [
        chunk["choices"][0]["logprobs"] for chunk in chunks(http, "/v1/completions", COMPLETION | {"logprobs": 1})[:-1]
    ]
    for field in told:
        assert [value for part in streamed if part for value in part[field]] == told[field]


def test_logprobs_zero_tells_of_the_chosen_tokens(frontend: "Frontend", http: httpx.Client) -> None:
    frontend.say(" a time")
    told = whole(http, "/v1/completions", COMPLETION | {"logprobs": 0})["choices"][0]["logprobs"]
    assert told["top_logprobs"] == [{name: -1.0} for name in told["tokens"]]


def test_tokens_by_their_numbers(frontend: "Frontend", http: httpx.Client) -> None:
    token_ids = frontend.say(" a time")
    body = COMPLETION | {"logprobs": 1, "return_tokens_as_token_ids": True, "return_token_ids": True}
    (choice,) = whole(http, "/v1/completions", body)["choices"]
    assert choice["logprobs"]["tokens"] == [f"token_id:{token_id}" for token_id in token_ids]
    assert choice["logprobs"]["top_logprobs"][0] == {"token_id:100": -2.0, f"token_id:{token_ids[0]}": -1.0}
    assert choice["token_ids"] == token_ids
    assert choice["prompt_token_ids"] == frontend.tokenizer.encode("Once upon")
    chat = whole(http, "/v1/chat/completions", CHAT | {"return_token_ids": True})
    assert chat["choices"][0]["token_ids"] == token_ids
    assert chat["prompt_token_ids"] == frontend.service.requests[-1].prompt_token_ids


def test_an_echo_begins_with_the_prompt(frontend: "Frontend", http: httpx.Client) -> None:
    frontend.say(" a time")
    body = COMPLETION | {"prompt": ["Once upon", "Grüße"], "echo": True, "logprobs": 0}
    first, second = whole(http, "/v1/completions", body)["choices"]
    assert (first["text"], second["text"]) == ("Once upon a time", "Grüße a time")
    assert first["logprobs"]["tokens"] == ["Once", " upon", " a", " time"]
    assert first["logprobs"]["token_logprobs"] == [None, -1.0, -1.0, -1.0]
    assert first["logprobs"]["top_logprobs"][0] is None
    assert first["logprobs"]["text_offset"] == [0, 4, 9, 11]
    texts, tokens = ["", ""], [list[str](), list[str]()]
    for chunk in chunks(http, "/v1/completions", body)[:-1]:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
        tokens[choice["index"]] += choice["logprobs"]["tokens"] if choice["logprobs"] else []
    assert texts == [first["text"], second["text"]]
    assert tokens == [first["logprobs"]["tokens"], second["logprobs"]["tokens"]]


def test_a_prompt_alone_can_be_scored(frontend: "Frontend", http: httpx.Client) -> None:
    frontend.say(" never shown")
    answer = whole(http, "/v1/completions", COMPLETION | {"echo": True, "logprobs": 1, "max_tokens": 0})
    (choice,) = answer["choices"]
    assert choice["text"] == "Once upon"
    assert choice["logprobs"]["tokens"] == ["Once", " upon"]
    assert answer["usage"]["completion_tokens"] == 0


def test_token_ids_are_echoed_as_their_text(frontend: "Frontend", http: httpx.Client) -> None:
    frontend.say(" a")
    prompt = frontend.tokenizer.encode("Once upon")
    assert (
        whole(http, "/v1/completions", COMPLETION | {"prompt": prompt, "echo": True})["choices"][0]["text"]
        == "Once upon a"
    )


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
def test_prompt_logprobs_as_vllm_sends_them(frontend: "Frontend", http: httpx.Client, route: str) -> None:
    frontend.say(" a")
    answer = whole(http, route, (COMPLETION if "chat" not in route else CHAT) | {"prompt_logprobs": 1})
    told = (answer if "chat" in route else answer["choices"][0])["prompt_logprobs"]
    prompt = frontend.service.requests[-1].prompt_token_ids
    assert told[0] is None
    for token_id, entry in zip(prompt[1:], told[1:], strict=True):
        assert entry[str(token_id)] == {
            "logprob": -1.0,
            "rank": 1,
            "decoded_token": frontend.tokenizer.decode([token_id], skip_special_tokens=False),
        }
        assert entry["100"]["logprob"] == -2.0


def test_usage_in_every_chunk(frontend: "Frontend", http: httpx.Client) -> None:
    frontend.say("one two three")
    options = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    text = http.post("/v1/chat/completions", json=CHAT | options).text
    counts = [json.loads(event[6:])["usage"]["completion_tokens"] for event in text.split("\n\n")[:-2]]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 3)


def test_what_ended_an_answer_is_told(frontend: "Frontend", http: httpx.Client) -> None:
    token_ids = frontend.say("one two three")
    body = COMPLETION | {"stop_token_ids": [token_ids[-1]]}
    (choice,) = whole(http, "/v1/completions", body)["choices"]
    assert (choice["text"], choice["stop_reason"]) == ("one two", token_ids[-1])
    (choice,) = whole(http, "/v1/completions", body | {"include_stop_str_in_output": True})["choices"]
    assert choice["text"] == "one two three"
