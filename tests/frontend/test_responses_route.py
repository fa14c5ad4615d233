"""POST /v1/responses: as the `openai` package reads it, whole and streamed, stored and gone on with."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from diptych.core.errors import NotFoundError, UnavailableError
from diptych.core.events import FinishReason
from diptych.frontend.response_store import ResponseStore, StoredResponse

if TYPE_CHECKING:
    from tests.frontend.conftest import Frontend

BODY: dict[str, Any] = {"model": "smol", "input": "Hi"}


@pytest.fixture
def client(frontend: "Frontend") -> Iterator[openai.OpenAI]:
    with frontend.openai() as client:
        yield client


@pytest.fixture
def http(frontend: "Frontend") -> Iterator[httpx.Client]:
    with frontend.http() as client:
        yield client


def prompt_of(frontend: "Frontend") -> str:
    """Return the last prompt as text."""
    return frontend.tokenizer.decode(frontend.service.requests[-1].prompt_token_ids, skip_special_tokens=False)


def test_a_whole_response(frontend: "Frontend", client: openai.OpenAI) -> None:
    num_tokens = len(frontend.say("Hello there.", num_cached_tokens=3))
    response = client.responses.create(model="smol", input="Hi", metadata={"a": "b"}, temperature=0.5)
    assert response.output_text == "Hello there."
    assert (response.status, response.error, response.incomplete_details) == ("completed", None, None)
    assert response.usage is not None
    assert response.usage.output_tokens == num_tokens
    assert response.usage.input_tokens_details.cached_tokens == 3
    assert (response.temperature, response.metadata, response.tools) == (0.5, {"a": "b"}, [])
    assert frontend.next_entered().sampling.temperature == 0.5


def test_items_and_instructions_become_messages(frontend: "Frontend", client: openai.OpenAI) -> None:
    items: list[Any] = [
        {"role": "user", "content": [{"type": "input_text", "text": "one"}, {"type": "input_text", "text": " two"}]},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "three", "annotations": []}],
        },
        {"role": "developer", "content": "four"},
    ]
    client.responses.create(model="smol", input=items, instructions="Be brief.")
    turns = [("system", "Be brief."), ("user", "one two"), ("assistant", "three"), ("system", "four")]
    shown = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
    assert prompt_of(frontend) == shown + "<|im_start|>assistant\n"


def test_a_streamed_response(frontend: "Frontend", client: openai.OpenAI) -> None:
    frontend.say("Grüße 😀!")
    events = list(client.responses.create(model="smol", input="Hi", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == "Grüße 😀!"
    assert len(deltas) > 1
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == "Grüße 😀!"
    assert last.response.usage is not None
    with client.responses.stream(model="smol", input="Hi") as stream:
        assert stream.get_final_response().output_text == "Grüße 😀!"


def test_an_answer_that_is_cut_is_incomplete(frontend: "Frontend", client: openai.OpenAI) -> None:
    frontend.say("one two three", reason=FinishReason.LENGTH)
    response = client.responses.create(model="smol", input="Hi", max_output_tokens=2)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    events = list(client.responses.create(model="smol", input="Hi", max_output_tokens=2, stream=True))
    assert events[-1].type == "response.incomplete"


def test_an_answer_without_a_word_is_an_empty_message(frontend: "Frontend", client: openai.OpenAI) -> None:
    frontend.say("")
    response = client.responses.create(model="smol", input="Hi")
    assert (response.output_text, len(response.output)) == ("", 1)


def test_json_by_schema(frontend: "Frontend", client: openai.OpenAI) -> None:
    from pydantic import BaseModel  # noqa: PLC0415

    class Person(BaseModel):
        name: str

    frontend.say('{"name": "Ann"}')
    parsed = client.responses.parse(model="smol", input="Who?", text_format=Person)
    assert parsed.output_parsed == Person(name="Ann")
    assert frontend.next_entered().sampling.grammar is not None


def test_logprobs(frontend: "Frontend", client: openai.OpenAI) -> None:
    frontend.say("yes")
    response = client.responses.create(
        model="smol", input="Hi", include=["message.output_text.logprobs"], top_logprobs=1
    )
    (message,) = response.output
    assert message.type == "message"
    (part,) = message.content
    assert part.type == "output_text"
    assert part.logprobs is not None
    assert [(entry.token, entry.logprob) for entry in part.logprobs] == [("yes", -1.0)]
    assert len(part.logprobs[0].top_logprobs) == 1


def test_a_response_is_gone_on_with(frontend: "Frontend", client: openai.OpenAI) -> None:
    frontend.say("first answer")
    first = client.responses.create(model="smol", input="first", instructions="not kept")
    frontend.say("second answer")
    for event in client.responses.create(model="smol", input="second", previous_response_id=first.id, stream=True):
        last = event
    assert last.type == "response.completed"
    client.responses.create(model="smol", input="third", previous_response_id=last.response.id)
    turns = [("user", "first"), ("assistant", "first answer"), ("user", "second"), ("assistant", "second answer")]
    shown = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in [*turns, ("user", "third")])
    assert prompt_of(frontend).endswith(shown + "<|im_start|>assistant\n")
    assert "not kept" not in prompt_of(frontend)
    again = client.responses.retrieve(first.id)
    assert again.output_text == "first answer"
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_what_shall_not_be_stored_is_not(frontend: "Frontend", client: openai.OpenAI) -> None:
    frontend.say("secret")
    response = client.responses.create(model="smol", input="Hi", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="smol", input="Hi", previous_response_id=response.id)


def test_an_error_in_mid_stream_is_an_event(frontend: "Frontend", http: httpx.Client) -> None:
    frontend.say_and_raise("Well", UnavailableError("the worker is gone"))
    text = http.post("/v1/responses", json=BODY | {"stream": True}).text
    *_, last = [event for event in text.split("\n\n") if event]
    assert last.startswith("event: error\ndata: ")
    assert "the worker is gone" in last
    assert "response.completed" not in text


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [{"type": "image_generation_call"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"truncation": "auto"}, "truncation"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"stop": ["x"]}, "stop"),
        ({"conversation": "c"}, "conversation"),
        ({"include": ["reasoning.encrypted_content"]}, "include[0]"),
    ],
)
def test_a_bad_body_is_refused_by_the_name_of_its_field(
    frontend: "Frontend", http: httpx.Client, change: dict[str, Any], param: str
) -> None:
    response = http.post("/v1/responses", json=BODY | change)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert not frontend.service.requests


def test_the_store_is_bounded() -> None:
    message = {"a": "x" * 30}
    assert len(str(message)) == 39
    store = ResponseStore(max_responses=3, max_bytes=1000)
    for number in range(5):
        store.put(f"r{number}", StoredResponse(b"y" * 60, [message]))
    assert store.get("r2", "").num_bytes == 99
    with pytest.raises(NotFoundError):
        store.get("r1", "")
    store.put("big", StoredResponse(b"y" * 900, []))
    with pytest.raises(NotFoundError):
        store.get("r3", "")
    store.delete("big", "")
    store.put("r9", StoredResponse(b"y" * 900, []))
    assert store.get("r4", "").num_bytes == 99, "what was deleted takes no room"
