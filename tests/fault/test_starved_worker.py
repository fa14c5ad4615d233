"""A worker that gets no core, since others have it, is not taken for hung: it goes on when its turn comes."""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.live_server import LiveServer, StartServer, eventually
from tests.modeled_answers import expected_text, make_prompt

from diptych.frontend.text.tokenizer import Tokenizer
from diptych.launch.supervisor import HUNG_AFTER_S

NUM_GREEDY = 12


def _spin(core: int) -> None:
    os.sched_setaffinity(0, {core})
    while True:
        pass


def _threads_of(pid: int) -> list[int]:
    return [int(thread.name) for thread in Path(f"/proc/{pid}/task").iterdir()]


@contextmanager
def starved(pid: int) -> Iterator[None]:
    """Let a process have a core only when all the others on it want none."""
    core = min(os.sched_getaffinity(pid))
    for thread in _threads_of(pid):
        os.sched_setaffinity(thread, {core})
        os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
    greedy = [multiprocessing.get_context("spawn").Process(target=_spin, args=(core,)) for _ in range(NUM_GREEDY)]
    for one in greedy:
        one.start()
    try:
        yield
    finally:
        for one in greedy:
            one.kill()
            one.join()


def silence_s(server: LiveServer, worker_id: str) -> float:
    return float(server.status()["workers"][worker_id]["heartbeat_age_s"])


@pytest.mark.slow
def test_a_starved_worker_is_left_alone(modeled_server: StartServer, tokenizer: Tokenizer) -> None:
    server = modeled_server()
    pid, incarnation = server.worker("decode-0")["pid"], server.incarnation("decode-0")
    with starved(pid):
        eventually(lambda: silence_s(server, "decode-0") > 2 * HUNG_AFTER_S, "a long silence", 120)
    prompt = make_prompt(100, 1)
    eventually(lambda: server.post(prompt).status_code == 200, "its turn")
    assert server.complete(prompt).text == expected_text(tokenizer, prompt, 16)
    assert server.incarnation("decode-0") == incarnation, "it was killed and replaced"
