"""The real model as its users meet it: the `openai` client, curl, a conversation, many at once."""

import asyncio
import json
import subprocess

import httpx
import openai
import pytest
from tests.live_process import StartCommand
from tests.live_server import PATIENCE_S, LiveServer

from diptych.frontend.text.chat_template import ChatTemplate
from diptych.frontend.text.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

QUESTION = "Name the four seasons, each with one thing that people do in it."
NUM_TOKENS = 24


def token_ids_of(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> list[int]:
    """Return the prompt that a conversation becomes."""
    return tokenizer.encode(ChatTemplate(tokenizer.openvino).render(messages), add_special_tokens=False)


@pytest.fixture(scope="module")
def answer(smol_server: LiveServer) -> str:
    """The greedy answer to `QUESTION`, asked without any client library."""
    body = {
        "model": smol_server.model,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": NUM_TOKENS,
        "temperature": 0,
    }
    text: str = smol_server.http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    assert len(text) > 20
    return text


def test_openai_client(smol_server: LiveServer, answer: str) -> None:
    with openai.OpenAI(base_url=f"{smol_server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S) as client:
        assert [model.id for model in client.models.list()] == [smol_server.model]
        completion = client.chat.completions.create(
            model=smol_server.model,
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=NUM_TOKENS,
            temperature=0,
        )
        assert completion.choices[0].message.content == answer
        assert completion.usage is not None
        assert completion.usage.completion_tokens == NUM_TOKENS
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            client.completions.create(model="another", prompt="Hi")
        with pytest.raises(openai.BadRequestError, match="shorten it"):
            client.completions.create(model=smol_server.model, prompt="so " * 20_000)
    smol_server.wait_until_idle()


def test_async_openai_client_streams(smol_server: LiveServer, answer: str) -> None:
    async def ask() -> tuple[str, int]:
        url = f"{smol_server.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=PATIENCE_S) as client:
            stream = await client.chat.completions.create(
                model=smol_server.model,
                messages=[{"role": "user", "content": QUESTION}],
                max_completion_tokens=NUM_TOKENS,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = [chunk async for chunk in stream]
        pieces = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
        assert chunks[-1].usage is not None
        return "".join(pieces), chunks[-1].usage.completion_tokens

    async def ask_twice_at_once() -> list[tuple[str, int]]:
        return list(await asyncio.gather(ask(), ask()))

    assert asyncio.run(ask_twice_at_once()) == [(answer, NUM_TOKENS)] * 2
    smol_server.wait_until_idle()


@pytest.mark.parametrize("stream", [False, True])
def test_curl(smol_server: LiveServer, answer: str, stream: bool) -> None:
    body = {"model": smol_server.model, "messages": [{"role": "user", "content": QUESTION}], "stream": stream}
    content = json.dumps(body | {"max_tokens": NUM_TOKENS, "temperature": 0})
    url = f"{smol_server.url}/v1/chat/completions"
    command = ["curl", "--silent", "--show-error", "--no-buffer", "--fail-with-body", "--max-time", "60", url]
    ended = subprocess.run(
        [*command, "-H", "Content-Type: application/json", "-d", content], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    if not stream:
        assert json.loads(ended.stdout)["choices"][0]["message"]["content"] == answer
        return
    events = [line.removeprefix("data: ") for line in ended.stdout.splitlines() if line]
    assert events.pop() == "[DONE]"
    deltas = [choice["delta"] for event in events for choice in json.loads(event)["choices"]]
    assert "".join(delta.get("content", "") for delta in deltas) == answer


def test_the_second_turn_of_a_conversation_finds_the_first(smol_server: LiveServer, tokenizer: Tokenizer) -> None:
    first = [{"role": "user", "content": "Tell me how a clock works, beginning with the spring. " * 3}]
    body = {"model": smol_server.model, "max_tokens": 40, "temperature": 0, "ignore_eos": True}

    def ask(messages: list[dict[str, str]]) -> tuple[str, int]:
        response = smol_server.http.post("/v1/chat/completions", json=body | {"messages": messages})
        assert response.status_code == 200, response.text
        usage = response.json()["usage"]
        assert usage["prompt_tokens"] == len(token_ids_of(tokenizer, messages))
        cached: int = usage["prompt_tokens_details"]["cached_tokens"]
        return response.json()["choices"][0]["message"]["content"], cached

    text, _ = ask(first)
    second = [*first, {"role": "assistant", "content": text}, {"role": "user", "content": "And the pendulum?"}]
    block_size = 32
    # The first turn has left blocks of its prompt and of its answer but the last token, which is never computed.
    first_ids, second_ids = token_ids_of(tokenizer, first), token_ids_of(tokenizer, second)
    assert second_ids[: len(first_ids)] == first_ids
    num_computed = len(first_ids) + 39
    _, num_cached_tokens = ask(second)
    assert num_cached_tokens == num_computed // block_size * block_size
    assert num_cached_tokens > len(first_ids) // block_size * block_size, "no block of the answer was found"
    smol_server.wait_until_idle()


def test_64_streams_at_once_are_each_as_alone(smol_server: LiveServer) -> None:
    prompts = [f"My house number is {number}, and the street where I live is called" for number in range(64)]
    answers = smol_server.complete_all(prompts, max_tokens=16)
    assert {answer.num_output_tokens for answer in answers} == {16}
    for number in (0, 31, 63):
        assert smol_server.complete(prompts[number]).text == answers[number].text
    smol_server.wait_until_idle()


def test_a_client_that_hangs_up_frees_its_blocks(smol_server: LiveServer) -> None:
    with smol_server.stream("Once upon a time", max_tokens=2000) as stream:
        stream.read(3)
    smol_server.wait_until_idle(10)
    assert smol_server.records()[-1]["outcome"] == "aborted"


def test_one_core(start_command: StartCommand, smol_server: LiveServer) -> None:
    prompt = "The best thing about a single core is"
    arguments = ("serve", "--port", "0", "--kv-dtype", "f32")  # as the other server has it, also where the CPU has bf16
    server = start_command(*arguments, prefix=("taskset", "-c", "0")).wait_for_server()
    assert server.complete(prompt).text == smol_server.complete(prompt).text
    assert httpx.get(f"{server.url}/ready").status_code == 200
    server.wait_until_idle()
