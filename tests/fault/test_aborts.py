"""Clients that leave at random moments, by the thousand: no block is kept, and nobody gets another one's answer."""

import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.live_server import LiveServer, Serving
from tests.modeled_answers import expected_text, make_prompt

from diptych.frontend.text.tokenizer import Tokenizer

NUM_LEAVERS = 8
NUM_ABORTS_EACH = 130
SHARED_TOKENS = 320


def leave_often(server: LiveServer, seed: int) -> None:
    """Ask and hang up after up to as long as an answer takes, again and again."""
    draw = random.Random(seed)
    for number in range(NUM_ABORTS_EACH):
        prompt = make_prompt(SHARED_TOKENS, 0)[: draw.choice([0, SHARED_TOKENS])]
        prompt += make_prompt(draw.randint(1, 150), seed * 10_000 + number)
        with server.unanswered(prompt, max_tokens=draw.randint(1, 60), stream=draw.random() < 0.5) as connection:
            if draw.random() < 0.3:
                connection.shutdown(socket.SHUT_WR)
            time.sleep(draw.expovariate(30.0))


@pytest.mark.slow
@pytest.mark.timeout(280)
@pytest.mark.parametrize("adaptive", [False, True])
def test_thousands_of_aborts_leave_nothing_and_disturb_nobody(
    serving: Serving, tokenizer: Tokenizer, adaptive: bool
) -> None:
    """Every honest answer is that of its own prompt, which no other prompt's KV could give; checksums are compared."""
    with serving(engine="modeled", modeled_time_scale=0.1, adaptive=adaptive, kv_checksums=True) as server:
        is_over = threading.Event()
        num_answers = 0

        def ask_honestly() -> None:
            nonlocal num_answers
            while not is_over.is_set():
                prompt = make_prompt(SHARED_TOKENS, 0)[: (num_answers % 2) * SHARED_TOKENS]
                prompt += make_prompt(50 + num_answers % 90, 5_000_000 + num_answers)
                assert server.complete(prompt, max_tokens=30).text == expected_text(tokenizer, prompt, 30)
                num_answers += 1

        with ThreadPoolExecutor(NUM_LEAVERS + 1) as pool:
            honest = pool.submit(ask_honestly)
            leavers = [pool.submit(leave_often, server, seed) for seed in range(NUM_LEAVERS)]
            for leaver in leavers:
                leaver.result(240)
            is_over.set()
            honest.result(60)
        assert num_answers > 10
        server.wait_until_idle()
