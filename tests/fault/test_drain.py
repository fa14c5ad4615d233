"""Workers are taken out of service and back while requests are served, and no request notices."""

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from tests.live_process import StartCommand
from tests.live_server import LiveServer, StartServer, eventually
from tests.modeled_answers import expected_text, make_prompt

from diptych.frontend.text.tokenizer import Tokenizer


def busy_workers(server: LiveServer) -> list[str]:
    return [name for name in ("decode-0", "decode-1") if server.worker(name)["num_running"] == 1]


@contextmanager
def constant_load(server: LiveServer, tokenizer: Tokenizer, num_clients: int = 4) -> Iterator[list[int]]:
    """Ask all the time; yield how many answers each client has got. Every answer must be right."""
    is_over = threading.Event()
    counts = [0] * num_clients

    def ask(client: int) -> None:
        while not is_over.is_set():
            prompt = make_prompt(40 + 13 * client, 1000 * client + counts[client])
            answer = server.complete(prompt, max_tokens=40)
            assert answer.text == expected_text(tokenizer, prompt, 40)
            counts[client] += 1

    with ThreadPoolExecutor(num_clients) as pool:
        futures = [pool.submit(ask, client) for client in range(num_clients)]
        try:
            yield counts
        finally:
            is_over.set()
        for future in futures:
            future.result(60)


def test_a_drained_worker_finishes_and_goes(
    modeled_server: StartServer, start_command: StartCommand, tokenizer: Tokenizer
) -> None:
    server = modeled_server(decode=2, modeled_time_scale=0.2)
    prompts = [make_prompt(60, seed) for seed in range(2)]
    with server.stream(prompts[0], max_tokens=150) as one, server.stream(prompts[1], max_tokens=150) as other:
        one.read(2)
        other.read(2)
        drain = start_command("drain", "decode-1", "--url", server.url)
        eventually(lambda: server.worker("decode-1")["state"] == "draining", "draining")
        assert server.complete(prompts[0]).text == expected_text(tokenizer, prompts[0], 16)
        for stream, prompt in zip((one, other), prompts, strict=True):
            assert stream.read().completion().text == expected_text(tokenizer, prompt, 150)
    assert drain.wait_for_exit() == 0
    assert server.worker("decode-1")["state"] == "dead"
    assert "taken out of service" in server.status()["workers"]["decode-1"]["outlook"]
    assert all(record["num_migrations"] == 0 for record in server.records())
    restart = start_command("restart", "decode-1", "--url", server.url)
    assert restart.wait_for_exit() == 0
    assert server.worker("decode-1")["state"] == "ready"
    server.wait_until_idle()


def test_what_a_drained_worker_does_not_finish_goes_on_elsewhere(
    modeled_server: StartServer, start_command: StartCommand, tokenizer: Tokenizer
) -> None:
    server = modeled_server(decode=2, modeled_time_scale=0.5)
    prompt = make_prompt(60, 1)
    with server.stream(prompt, max_tokens=600) as stream:
        stream.read(5)
        eventually(lambda: len(busy_workers(server)) == 1, "news of who writes")
        [owner] = busy_workers(server)
        assert start_command("drain", owner, "--timeout-s", "0.1", "--url", server.url).wait_for_exit() == 0
        assert stream.read().completion().text == expected_text(tokenizer, prompt, 600)
    assert server.records()[-1]["num_migrations"] == 1
    server.wait_until_idle()


@pytest.mark.slow
def test_a_rolling_restart_under_load_loses_nothing(
    modeled_server: StartServer, start_command: StartCommand, tokenizer: Tokenizer
) -> None:
    server = modeled_server(prefill=2, decode=2, modeled_time_scale=0.1)
    before = {worker: server.incarnation(worker) for worker in server.status()["workers"]}
    with constant_load(server, tokenizer) as counts:
        restart = start_command("restart", "--url", server.url)
        assert restart.wait_for_exit() == 0, restart.stderr
    assert all(server.incarnation(worker) > incarnation for worker, incarnation in before.items())
    assert min(counts) > 0
    server.wait_until_idle()
    assert {record["outcome"] for record in server.records()} == {"length"}


def test_sigterm_to_a_worker_moves_its_requests(modeled_server: StartServer, tokenizer: Tokenizer) -> None:
    server = modeled_server(modeled_time_scale=0.3)
    prompt = make_prompt(100, 9)
    with server.stream(prompt, max_tokens=200) as stream:
        stream.read(5)
        os.kill(server.worker("decode-0")["pid"], signal.SIGTERM)
        assert stream.read().completion().text == expected_text(tokenizer, prompt, 200)
    server.wait_until_up("decode-0")
    server.wait_until_idle()


def test_bad_orders_are_refused_in_one_line(modeled_server: StartServer, start_command: StartCommand) -> None:
    server = modeled_server()
    cases = {
        ("drain", "decode-9"): "there is no worker decode-9; `diptych status` lists them",
        ("restart", "decode-9"): "there is no worker decode-9; `diptych status` lists them",
    }
    for arguments, message in cases.items():
        command = start_command(*arguments, "--url", server.url)
        assert command.wait_for_exit() == 1
        assert message in command.stderr.splitlines()[-1]
    nobody = start_command("drain", "decode-0", "--url", "http://127.0.0.1:9")
    assert nobody.wait_for_exit() == 1
    assert "no Diptych server answers at" in nobody.stderr
    response = server.http.post("/diptych/workers/decode-0/drain", json={"timeout_s": -1})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "timeout_s")
    response = server.http.post("/diptych/workers/decode-0/start")
    assert response.status_code == 503
    assert server.worker("decode-0")["state"] == "ready"
