"""A worker's death costs its requests a pause, or a clear error; nothing hangs, and what lives goes on."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.live_server import PATIENCE_S, LiveServer, Serving, StartServer, eventually
from tests.modeled_answers import expected_text, make_prompt

from diptych.core.events import Lifecycle
from diptych.frontend.text.tokenizer import Tokenizer

LONG_ANSWER_TOKENS = 2000
"""38 s and more of decode."""
NATURAL_TEXT = " ".join(
    f"On day {day} of the voyage the wind turned, and the crew of the little ship wrote down what they saw:"
    for day in range(1, 23)
)


def kill(server: LiveServer, worker_id: str) -> None:
    """End a worker with -9 and wait until the router knows."""
    os.kill(server.worker(worker_id)["pid"], signal.SIGKILL)
    eventually(lambda: server.worker(worker_id)["state"] == "dead", f"news of the death of {worker_id}", 10)


def kill_in_mid_prompt(server: LiveServer) -> float:
    """Kill the prefill worker as soon as it reads a prompt; return when, on the clock of the requests' timelines."""
    eventually(lambda: server.worker("prefill-0")["num_running"] == 1, "prefill")
    killed_s = time.monotonic()
    kill(server, "prefill-0")
    return killed_s


def kill_when_it_computes(pid: int) -> float:
    """Kill a worker once it has computed for 50 ms; return when.

    A real prompt may be read between two heartbeats, which therefore cannot tell that it is being read.
    """
    idle_s = cpu_time_s(pid)
    give_up_s = time.monotonic() + PATIENCE_S
    while cpu_time_s(pid) < idle_s + 0.05:
        assert time.monotonic() < give_up_s, "the worker computes nothing"
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    return time.monotonic()


def cpu_time_s(pid: int) -> float:
    """Return how long a process has computed, from /proc; its resolution is 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
def test_prefill_worker_killed_in_mid_prompt(modeled_server: StartServer, tokenizer: Tokenizer) -> None:
    server = modeled_server(modeled_time_scale=1)
    prompts = [make_prompt(700, 1), make_prompt(600, 2)]  # 2 s of prefill each; one waits for the other
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(server.complete_all, prompts, max_tokens=30)
        killed_s = kill_in_mid_prompt(server)
        texts = [answer.text for answer in answers.result(PATIENCE_S)]
    assert texts == [expected_text(tokenizer, prompt, 30) for prompt in prompts]
    server.wait_until_idle()
    for record in server.records():
        assert record["timeline"][Lifecycle.FIRST_TOKEN] > killed_s, "too late: the prompt had been read"
    assert server.http.get("/ready").status_code == 200
    late = make_prompt(100, 3)
    assert server.complete(late).text == expected_text(tokenizer, late, 16)
    assert server.records()[-1]["prefill_worker"] is None
    server.wait_until_idle()


@pytest.mark.slow
def test_real_prefill_worker_killed_in_mid_prompt(serving: Serving, smol_server: LiveServer) -> None:
    undisturbed = smol_server.complete(NATURAL_TEXT, max_tokens=60)
    with serving() as server:
        prefill_pid = server.worker("prefill-0")["pid"]
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(server.complete, NATURAL_TEXT, max_tokens=60)
            killed_s = kill_when_it_computes(prefill_pid)
            assert answer.result(PATIENCE_S).text == undisturbed.text
        assert server.records()[-1]["timeline"][Lifecycle.FIRST_TOKEN] > killed_s, "too late: the prompt had been read"
        server.wait_until_idle()
    smol_server.wait_until_idle()


def test_decode_worker_killed(modeled_server: StartServer) -> None:
    server = modeled_server(modeled_time_scale=1)
    with ThreadPoolExecutor(2) as pool, server.stream(make_prompt(40, 4), max_tokens=LONG_ANSWER_TOKENS) as stream:
        running = pool.submit(server.post, make_prompt(40, 5), max_tokens=LONG_ANSWER_TOKENS)
        stream.read(2)
        eventually(lambda: server.worker("decode-0")["num_running"] == 2, "two running answers")
        unread = pool.submit(server.post, make_prompt(3000, 6))
        eventually(lambda: server.worker("prefill-0")["num_running"] == 1, "a prompt that is being read")
        kill(server, "decode-0")
        assert stream.read().error is not None
        assert stream.error is not None
        assert stream.error["message"] == "worker decode-0 died while answering; send the request again"
        for future in (running, unread):
            response = future.result(PATIENCE_S)
            assert response.status_code == 503
            assert "worker decode-0 died" in response.json()["error"]["message"]
    assert server.http.get("/ready").status_code == 503
    assert server.http.get("/health").status_code == 200
    assert server.status()["health"] == "unavailable"
    assert server.post("Is anybody there?").status_code == 503
    eventually(lambda: server.worker("prefill-0")["queued_prefill_tokens"] == 0, "an idle prefill worker")
    assert sorted(record["outcome"] for record in server.records()) == ["failed"] * 3


@pytest.mark.slow
def test_another_decode_worker_takes_over_what_has_no_token_yet(
    modeled_server: StartServer, tokenizer: Tokenizer
) -> None:
    server = modeled_server(modeled_time_scale=1, decode=2)
    prompts = [make_prompt(500 + index, 7 + index) for index in range(2)]
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(server.complete_all, prompts, max_tokens=20)
        for worker_id in ("decode-0", "decode-1"):
            eventually(lambda worker_id=worker_id: server.worker(worker_id)["num_running"] == 1, "a request on each")  # type: ignore[misc]
        kill(server, "decode-0")
        texts = [answer.text for answer in answers.result(PATIENCE_S)]
    assert texts == [expected_text(tokenizer, prompt, 20) for prompt in prompts]
    assert {record["decode_worker"] for record in server.records()} == {"decode-1"}
    assert server.http.get("/ready").status_code == 200
    server.wait_until_idle()


def test_every_worker_killed_and_the_server_still_ends(modeled_server: StartServer) -> None:
    server = modeled_server()
    for worker_id in ("prefill-0", "decode-0"):
        kill(server, worker_id)
    assert server.post("Hello?").status_code == 503


@pytest.mark.parametrize("worker_id", ["prefill-0", "decode-0"])
def test_a_worker_that_stands_still_costs_its_requests_their_deadline_and_no_block(
    modeled_server: StartServer, tokenizer: Tokenizer, worker_id: str
) -> None:
    server = modeled_server(request_timeout_s=1)
    pid = server.worker(worker_id)["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        response = server.post(make_prompt(100, 20))
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")
    server.wait_until_idle()
    prompt = make_prompt(100, 21)
    assert server.complete(prompt).text == expected_text(tokenizer, prompt, 16)
    server.wait_until_idle()
