"""A worker's death, however it dies, costs its requests a pause and nothing else; a new one takes its place."""

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
from diptych.policy.restarting import LOOP_DEATHS

NATURAL_TEXT = " ".join(
    f"On day {day} of the voyage the wind turned, and the crew of the little ship wrote down what they saw:"
    for day in range(1, 23)
)


def kill(server: LiveServer, worker_id: str) -> None:
    """End a worker with -9 and wait until the router knows."""
    before = server.incarnation(worker_id)
    os.kill(server.worker(worker_id)["pid"], signal.SIGKILL)
    eventually(
        lambda: server.worker(worker_id)["state"] == "dead" or server.incarnation(worker_id) > before,
        f"news of the death of {worker_id}",
        10,
    )


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
    server.wait_until_up("prefill-0")
    later = make_prompt(100, 4)
    assert server.complete(later).text == expected_text(tokenizer, later, 16)
    assert server.records()[-1]["prefill_worker"] == "prefill-0"
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


def test_the_only_decode_worker_killed(modeled_server: StartServer, tokenizer: Tokenizer) -> None:
    """Running answers, unread prompts and new requests wait for the successor, which still knows the prefixes."""
    server = modeled_server(modeled_time_scale=0.3)
    prompts = [make_prompt(40, 4), make_prompt(200, 5), make_prompt(3000, 6)]
    server.complete(prompts[1], max_tokens=1)  # so that it is known by then, whoever reads how fast
    with ThreadPoolExecutor(3) as pool, server.stream(prompts[0], max_tokens=300) as stream:
        running = pool.submit(server.complete, prompts[1], max_tokens=300)
        stream.read(2)
        eventually(lambda: server.worker("decode-0")["num_running"] == 2, "two running answers")
        unread = pool.submit(server.complete, prompts[2])
        eventually(lambda: server.worker("prefill-0")["num_running"] == 1, "a prompt that is being read")
        kill(server, "decode-0")
        late = pool.submit(server.complete, prompts[1], max_tokens=16)
        assert stream.read().completion().text == expected_text(tokenizer, prompts[0], 300)
        assert running.result(PATIENCE_S).text == expected_text(tokenizer, prompts[1], 300)
        assert unread.result(PATIENCE_S).text == expected_text(tokenizer, prompts[2], 16)
        again = late.result(PATIENCE_S)
    assert again.text == expected_text(tokenizer, prompts[1], 16)
    assert again.num_cached_tokens == 192, "the prefix cache has outlived its worker"
    assert server.http.get("/ready").status_code == 200
    server.wait_until_idle()
    assert sorted(record["num_migrations"] for record in server.records()) == [0, 0, 1, 1, 1]
    assert {record["outcome"] for record in server.records()} == {"length"}


@pytest.mark.slow
def test_another_decode_worker_adopts_running_answers(modeled_server: StartServer, tokenizer: Tokenizer) -> None:
    server = modeled_server(modeled_time_scale=0.3, decode=2)
    prompts = [make_prompt(100 + index, 30 + index) for index in range(6)]
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(server.complete_all, prompts, max_tokens=400)
        for worker_id in ("decode-0", "decode-1"):
            eventually(lambda worker_id=worker_id: server.worker(worker_id)["num_running"] == 3, "answers on each")  # type: ignore[misc]
        eventually(lambda: server.worker("decode-0")["num_steps"] > 200, "half of the answers")
        num_steps = server.worker("decode-1")["num_steps"]
        kill(server, "decode-0")
        eventually(lambda: server.worker("decode-1")["num_running"] == 6, "all answers on one", 5)
        texts = [answer.text for answer in answers.result(PATIENCE_S)]
    assert texts == [expected_text(tokenizer, prompt, 400) for prompt in prompts]
    server.wait_until_idle()
    assert server.worker("decode-1")["num_steps"] - num_steps < 350, "what was there has been computed again"
    moved = [record for record in server.records() if record["num_migrations"]]
    assert len(moved) == 3
    assert all(record["timeline"][Lifecycle.FIRST_TOKEN] < record["timeline"][Lifecycle.MIGRATED] for record in moved)


@pytest.mark.slow
def test_real_decode_worker_killed_in_mid_answer(serving: Serving, smol_server: LiveServer) -> None:
    """The KV of the real engine is adopted bit for bit, on the default set-up: the prefill worker goes on."""
    sampled = {"temperature": 1.0, "seed": 7, "max_tokens": 120}
    undisturbed = [smol_server.complete(NATURAL_TEXT, max_tokens=120), smol_server.complete("Once", **sampled)]
    with serving(adaptive=True) as server:
        with server.stream(NATURAL_TEXT, max_tokens=120) as stream, server.stream("Once", **sampled) as other:
            stream.read(30)
            other.read(10)
            owners = {name for name in ("decode-0", "prefill-0") if server.worker(name)["num_running"]}
            kill(server, "decode-0")
            texts = [stream.read().completion().text, other.read().completion().text]
        assert texts == [answer.text for answer in undisturbed]
        assert "decode-0" in owners
        server.wait_until_up("decode-0")
        server.wait_until_idle()
    smol_server.wait_until_idle()


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


def test_every_worker_killed_at_once(modeled_server: StartServer, tokenizer: Tokenizer) -> None:
    server = modeled_server(modeled_time_scale=0.3)
    prompt = make_prompt(100, 9)
    with server.stream(prompt, max_tokens=300) as stream:
        stream.read(5)
        for worker_id in ("prefill-0", "decode-0"):
            os.kill(server.worker(worker_id)["pid"], signal.SIGKILL)
        assert stream.read().completion().text == expected_text(tokenizer, prompt, 300)
    for worker_id in ("prefill-0", "decode-0"):
        server.wait_until_up(worker_id)
    server.wait_until_idle()


def test_the_server_ends_while_a_worker_is_down(modeled_server: StartServer) -> None:
    server = modeled_server()
    for worker_id in ("prefill-0", "decode-0"):
        os.kill(server.worker(worker_id)["pid"], signal.SIGKILL)


@pytest.mark.parametrize("worker_id", ["prefill-0", "decode-0"])
def test_a_worker_that_stands_still_is_killed_and_replaced(
    modeled_server: StartServer, tokenizer: Tokenizer, worker_id: str
) -> None:
    server = modeled_server(modeled_time_scale=0.3)
    before = server.incarnation(worker_id)
    prompt = make_prompt(100, 20)
    with server.stream(make_prompt(80, 21), max_tokens=200) as stream:
        stream.read(3)
        os.kill(server.worker(worker_id)["pid"], signal.SIGSTOP)
        assert server.complete(prompt).text == expected_text(tokenizer, prompt, 16)
        assert stream.read().completion().text == expected_text(tokenizer, make_prompt(80, 21), 200)
    server.wait_until_up(worker_id)
    assert server.incarnation(worker_id) > before, "nobody has replaced it"
    server.wait_until_idle()


def test_a_request_does_not_outlive_its_deadline_on_a_worker_that_stands_still(modeled_server: StartServer) -> None:
    server = modeled_server(request_timeout_s=1)
    os.kill(server.worker("decode-0")["pid"], signal.SIGSTOP)
    response = server.post(make_prompt(100, 20))
    assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")
    server.wait_until_up("decode-0")
    server.wait_until_idle()


@pytest.mark.slow
@pytest.mark.parametrize("after_s", [0.2, 0.4, 0.6, 0.8])
def test_a_successor_killed_while_it_comes_up(
    modeled_server: StartServer, tokenizer: Tokenizer, after_s: float
) -> None:
    """Whatever it has told whom by then, the next one gets its blocks."""
    server = modeled_server(modeled_time_scale=0.3)
    first, before = server.incarnation("decode-0"), set(worker_pids())
    kill(server, "decode-0")
    eventually(lambda: bool(set(worker_pids()) - before), "a successor")
    time.sleep(after_s)
    [successor] = set(worker_pids()) - before
    os.kill(successor, signal.SIGKILL)
    eventually(lambda: server.incarnation("decode-0") > first + 1, "another successor", 30)
    server.wait_until_up("decode-0")
    prompt = make_prompt(100, 5)
    assert server.complete(prompt).text == expected_text(tokenizer, prompt, 16)
    server.wait_until_idle()


def worker_pids() -> list[int]:
    """Return the workers that this process, which is the launcher, has started."""
    pids = [int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()]
    return [pid for pid in pids if b"diptych.worker.server" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.slow
def test_a_crash_loop_is_reported_and_the_others_serve(modeled_server: StartServer, tokenizer: Tokenizer) -> None:
    server = modeled_server(decode=2)
    for _ in range(LOOP_DEATHS - 1):
        kill(server, "decode-1")
        server.wait_until_up("decode-1")
    kill(server, "decode-1")
    outlook = server.status()["workers"]["decode-1"]["outlook"]
    assert outlook.startswith(f"it has died {LOOP_DEATHS} times of late; the next try is in"), outlook
    prompts = [make_prompt(50, seed) for seed in range(4)]
    answers = server.complete_all(prompts)
    assert [answer.text for answer in answers] == [expected_text(tokenizer, prompt, 16) for prompt in prompts]
    assert {record["decode_worker"] for record in server.records()} == {"decode-0"}
    server.wait_until_up("decode-1")
    server.wait_until_idle()
