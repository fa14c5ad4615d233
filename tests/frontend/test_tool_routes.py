"""Tools over HTTP: offered in the prompt, called in the answer, streamed in pieces."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from diptych.core.events import FinishReason
from diptych.frontend.text.tool_calls import write_call

if TYPE_CHECKING:
    from tests.frontend.conftest import Frontend, StartFrontend

WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
TIME: Any = {"type": "function", "function": {"name": "time"}}
CHAT: dict[str, Any] = {"model": "smol", "messages": [{"role": "user", "content": "Well?"}], "tools": [WEATHER, TIME]}
PARIS = write_call("weather", '{"city": "Paris"}')
NOW = write_call("time", "{}")


@pytest.fixture
def frontend(start_frontend: "StartFrontend") -> "Frontend":
    """Serve a context that has room for tools."""
    return start_frontend(max_model_len=2048)


@pytest.fixture
def http(frontend: "Frontend") -> Iterator[httpx.Client]:
    with frontend.http() as client:
        yield client


def test_calls_are_told_from_text(frontend: "Frontend", http: httpx.Client) -> None:
    frontend.say(f"Let me see.\n{PARIS}\n{NOW}")
    (choice,) = http.post("/v1/chat/completions", json=CHAT).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see.\n"
    called = [call["function"] for call in choice["message"]["tool_calls"]]
    assert called == [{"name": "weather", "arguments": '{"city": "Paris"}'}, {"name": "time", "arguments": "{}"}]
    ids = {call["id"] for call in choice["message"]["tool_calls"]}
    assert len(ids) == 2
    request = frontend.next_entered()
    assert request.sampling.grammar is not None
    assert '"weather"' in frontend.tokenizer.decode(request.prompt_token_ids)


def test_a_call_alone_has_no_content(frontend: "Frontend", http: httpx.Client) -> None:
    frontend.say(PARIS)
    (choice,) = http.post("/v1/chat/completions", json=CHAT).json()["choices"]
    assert choice["message"]["content"] is None
    assert len(choice["message"]["tool_calls"]) == 1


def test_an_answer_without_a_call_is_an_answer(frontend: "Frontend", http: httpx.Client) -> None:
    frontend.say("It rains <everywhere>.")
    (choice,) = http.post("/v1/chat/completions", json=CHAT).json()["choices"]
    assert choice["message"]["content"] == "It rains <everywhere>."
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "stop"


def test_a_named_tool_ends_with_stop_and_a_cut_one_with_length(frontend: "Frontend", http: httpx.Client) -> None:
    frontend.say(PARIS)
    named = {"tool_choice": {"type": "function", "function": {"name": "weather"}}}
    assert http.post("/v1/chat/completions", json=CHAT | named).json()["choices"][0]["finish_reason"] == "stop"
    frontend.say(PARIS, reason=FinishReason.LENGTH)
    assert http.post("/v1/chat/completions", json=CHAT).json()["choices"][0]["finish_reason"] == "length"


def test_without_a_choice_tools_are_not_offered(frontend: "Frontend", http: httpx.Client) -> None:
    frontend.say(PARIS)
    (choice,) = http.post("/v1/chat/completions", json=CHAT | {"tool_choice": "none"}).json()["choices"]
    assert choice["message"]["content"] == PARIS
    request = frontend.next_entered()
    assert request.sampling.grammar is None
    assert "weather" not in frontend.tokenizer.decode(request.prompt_token_ids)


@pytest.mark.parametrize("num_tokens_together", [1, 4, 100])
def test_a_stream_brings_calls_in_pieces(frontend: "Frontend", http: httpx.Client, num_tokens_together: int) -> None:
    frontend.say(f"Hm.\n{PARIS}\n{NOW}", num_tokens_together=num_tokens_together)
    text = http.post("/v1/chat/completions", json=CHAT | {"stream": True, "logprobs": True}).text
    deltas = [json.loads(event[6:])["choices"][0] for event in text.split("\n\n")[:-2]]
    content = "".join(choice["delta"].get("content") or "" for choice in deltas)
    assert content == "Hm.\n"
    calls: dict[int, dict[str, Any]] = {}
    for choice in deltas:
        for call in choice["delta"].get("tool_calls", ()):
            if "id" in call:
                assert call["type"] == "function"
                assert call["index"] == len(calls)
                calls[call["index"]] = {"name": call["function"]["name"], "arguments": ""}
            calls[call["index"]]["arguments"] += call["function"]["arguments"]
    assert list(calls.values()) == [
        {"name": "weather", "arguments": '{"city": "Paris"}'},
        {"name": "time", "arguments": "{}"},
    ]
    assert deltas[-1]["finish_reason"] == "tool_calls"


def test_the_openai_client_puts_a_streamed_call_together(frontend: "Frontend") -> None:
    frontend.say(PARIS)
    with (
        frontend.openai() as client,
        client.chat.completions.stream(
            model="smol", messages=[{"role": "user", "content": "Well?"}], tools=[WEATHER]
        ) as stream,
    ):
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls is not None
    assert message.tool_calls[0].function.arguments == '{"city": "Paris"}'


def test_calls_and_results_go_back_into_the_prompt(frontend: "Frontend") -> None:
    frontend.say("It rains.")
    call: Any = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    messages: list[Any] = [
        {"role": "user", "content": "Well?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    with frontend.openai() as client:
        client.chat.completions.create(model="smol", messages=messages, tools=[WEATHER])
    prompt = frontend.tokenizer.decode(frontend.next_entered().prompt_token_ids)
    assert PARIS in prompt
    assert "<tool_response>\nrain\n</tool_response>" in prompt


def test_the_responses_route_calls_too(frontend: "Frontend") -> None:
    frontend.say(f"Hm.\n{PARIS}")
    tool: Any = {"type": "function", "name": "weather", "parameters": WEATHER["function"]["parameters"]}
    with frontend.openai() as client:
        response = client.responses.create(model="smol", input="Well?", tools=[tool])
        message, call = response.output
        assert response.output_text == "Hm.\n"
        assert message.type == "message"
        assert call.type == "function_call"
        assert (call.name, call.arguments) == ("weather", '{"city": "Paris"}')
        frontend.say("It rains.")
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
        again = client.responses.create(
            model="smol", input=[result], previous_response_id=response.id, tools=[tool], tool_choice="none"
        )
    assert again.output_text == "It rains."
    prompt = frontend.tokenizer.decode(frontend.service.requests[-1].prompt_token_ids)
    assert f"Hm.\n\n{PARIS}" in prompt
    assert "<tool_response>\nrain\n</tool_response>" in prompt


def test_a_streamed_response_brings_a_call_in_pieces(frontend: "Frontend") -> None:
    frontend.say(f"Hm.\n{PARIS}")
    tool: Any = {"type": "function", "name": "weather", "parameters": WEATHER["function"]["parameters"]}
    with frontend.openai() as client:
        events = list(client.responses.create(model="smol", input="Well?", tools=[tool], stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == '{"city": "Paris"}'
    (done,) = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert done.arguments == '{"city": "Paris"}'
    assert events[-1].type == "response.completed"
    assert [item.type for item in events[-1].response.output] == ["message", "function_call"]


def test_a_tool_that_is_not_there_cannot_be_chosen_for_a_response(frontend: "Frontend") -> None:
    tool: Any = {"type": "function", "name": "weather"}
    choice: Any = {"type": "function", "name": "other"}
    with frontend.openai() as client, pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="smol", input="Well?", tools=[tool], tool_choice=choice)
    assert caught.value.param == "tool_choice"
