"""What the `openai` package made of an answer can be sent back as it is: a talk goes on, a call gets its result.

The package writes fields of its own into its objects, and sends some of them along.
"""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field
from tests.live_server import PATIENCE_S, LiveServer

# The package dumps its own objects with a warning about a field of its own.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")]

QUESTION: Any = {"role": "user", "content": "What is the weather in Rome?"}


class GetWeather(BaseModel):
    """Return the weather in a city."""

    model_config = ConfigDict(extra="forbid")
    city: str = Field(max_length=30)
    days: int = Field(ge=1, le=9)


TOOL: Any = openai.pydantic_function_tool(GetWeather)
CALLING: dict[str, Any] = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
SETTINGS: dict[str, Any] = {"temperature": 0, "max_tokens": 100}


@pytest.fixture
def client(smol_server: LiveServer) -> Iterator[openai.OpenAI]:
    url = f"{smol_server.url}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=PATIENCE_S) as client:
        yield client
    smol_server.wait_until_idle()


def call_of(client: openai.OpenAI, model: str, way: str) -> Any:
    """Return the message with a call, as the client gives it."""
    asked: dict[str, Any] = {"model": model, "messages": [QUESTION]} | CALLING | SETTINGS
    if way == "create":
        return client.chat.completions.create(**asked).choices[0].message
    if way == "parse":
        return client.chat.completions.parse(**asked).choices[0].message
    with client.chat.completions.stream(**asked) as stream:
        return stream.get_final_completion().choices[0].message


@pytest.mark.parametrize("is_dumped", [False, True], ids=["object", "dict"])
@pytest.mark.parametrize("way", ["create", "parse", "stream"])
def test_a_call_and_its_result(client: openai.OpenAI, smol_server: LiveServer, way: str, is_dumped: bool) -> None:
    message = call_of(client, smol_server.model, way)
    (call,) = message.tool_calls
    conversation = [
        QUESTION,
        message.model_dump() if is_dumped else message,
        {"role": "tool", "tool_call_id": call.id, "content": '{"sky": "clear"}'},
    ]
    answer = client.chat.completions.create(
        model=smol_server.model, messages=conversation, tools=[TOOL], tool_choice="none", **SETTINGS
    )
    assert answer.choices[0].message.content


@pytest.mark.parametrize("is_dumped", [False, True], ids=["object", "dict"])
def test_a_parsed_answer(client: openai.OpenAI, smol_server: LiveServer, is_dumped: bool) -> None:
    answer = client.chat.completions.parse(
        model=smol_server.model, messages=[QUESTION], response_format=GetWeather, **SETTINGS
    )
    message: Any = answer.choices[0].message
    assert message.parsed is not None
    conversation = [QUESTION, message.model_dump() if is_dumped else message, {"role": "user", "content": "Thanks!"}]
    again = client.chat.completions.create(model=smol_server.model, messages=conversation, **SETTINGS)
    assert again.choices[0].message.content


@pytest.mark.parametrize("way", ["create", "parse", "stream"])
def test_the_output_of_a_response(client: openai.OpenAI, smol_server: LiveServer, way: str) -> None:
    tool: Any = {"type": "function", "strict": True, **TOOL["function"]}
    asked: dict[str, Any] = {
        "model": smol_server.model,
        "input": [QUESTION],
        "tools": [tool],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "temperature": 0,
        "max_output_tokens": 100,
    }
    if way == "stream":
        with client.responses.stream(**asked) as stream:
            response: Any = stream.get_final_response()
    else:
        response = client.responses.parse(**asked) if way == "parse" else client.responses.create(**asked)
    (call,) = [item for item in response.output if item.type == "function_call"]
    conversation: list[Any] = [
        QUESTION,
        *response.output,
        {"type": "function_call_output", "call_id": call.call_id, "output": '{"sky": "clear"}'},
    ]
    again = client.responses.create(
        model=smol_server.model, input=conversation, tools=[tool], tool_choice="none", max_output_tokens=60
    )
    assert again.output_text
    conversation += [*again.output, {"role": "user", "content": "Thanks!"}]
    client.responses.create(model=smol_server.model, input=conversation, max_output_tokens=16)
