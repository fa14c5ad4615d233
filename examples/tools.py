"""Let the model call a function, run it, and tell the model what it returned, with the `openai` package.

    diptych serve
    pip install openai
    python examples/tools.py "What is the weather in Rome?"

The call's arguments match the function's schema whatever the model is: tokens that would not are ruled out.
"""

import argparse
import json

import openai
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam

WEATHER: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Return the weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 30},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}


def get_weather(city: str, unit: str) -> dict[str, object]:
    """Stand in for a service: it is always 20 degrees Celsius."""
    return {"city": city, "degrees": 20 if unit == "celsius" else 68, "unit": unit, "sky": "clear"}


def main() -> None:
    """Ask, watch the call being written, run it, and print the answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", nargs="?", default="What is the weather in Rome?")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the server listens")
    arguments = parser.parse_args()

    client = openai.OpenAI(base_url=f"{arguments.url}/v1", api_key="not used")
    model = client.models.list().data[0].id
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": arguments.question}]
    with client.chat.completions.stream(
        model=model,
        messages=messages,
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=100,
        temperature=0,
    ) as stream:
        for event in stream:
            if event.type == "tool_calls.function.arguments.delta":
                print(event.arguments_delta, end="", flush=True)
        message = stream.get_final_completion().choices[0].message
    print()
    messages.append(message)  # type: ignore[arg-type]  # the client takes it back as it is
    for call in message.tool_calls or []:
        result = get_weather(**json.loads(call.function.arguments))
        print(f"{call.function.name} returned {result}")
        messages.append({"role": "tool", "tool_call_id": call.id, "content": json.dumps(result)})
    answer = client.chat.completions.create(model=model, messages=messages, tools=[WEATHER], max_tokens=60)
    print(answer.choices[0].message.content)


if __name__ == "__main__":
    main()
