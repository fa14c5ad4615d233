"""Clients that leave at random moments, by the thousand: no block is kept, and nobody gets another one's answer.

Every prompt is one of its own, and every answer that comes is compared with the one that its prompt's KV alone can
give: the modeled engine's tokens follow from all blocks that it reads. Before each step, all KV that it reads is
compared with what was written under its sequence's epochs.
"""

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
NUM_REQUESTS_EACH = 132
STAYING_SHARE = 0.05
SHARED_TOKENS = 320


def leave_often(server: LiveServer, tokenizer: Tokenizer, seed: int) -> int:
    """Ask and hang up after up to as long as an answer takes, again and again; return how many answers came whole."""
    draw = random.Random(seed)
    num_answers = 0
    for number in range(NUM_REQUESTS_EACH):
        prompt = make_prompt(SHARED_TOKENS, 0)[: draw.choice([0, SHARED_TOKENS])]
        prompt += make_prompt(draw.randint(1, 150), seed * 10_000 + number)
        num_tokens = draw.randint(1, 60)
        if draw.random() < STAYING_SHARE:
            assert server.complete(prompt, max_tokens=num_tokens).text == expected_text(tokenizer, prompt, num_tokens)
            num_answers += 1
            continue
        with server.unanswered(prompt, max_tokens=num_tokens, stream=draw.random() < 0.5) as connection:
            if draw.random() < 0.3:
                connection.shutdown(socket.SHUT_WR)
            time.sleep(draw.expovariate(50.0))
    return num_answers


@pytest.mark.slow
@pytest.mark.timeout(280)
@pytest.mark.parametrize("adaptive", [False, True])
def test_thousands_of_aborts_leave_nothing_and_disturb_nobody(
    serving: Serving, tokenizer: Tokenizer, adaptive: bool
) -> None:
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
            leavers = [pool.submit(leave_often, server, tokenizer, seed) for seed in range(NUM_LEAVERS)]
            num_staying = sum(leaver.result(240) for leaver in leavers)
            is_over.set()
            honest.result(60)
        assert num_answers > 10
        assert num_staying > 10
        server.wait_until_idle()
        for worker_id in ("prefill-0", "decode-0"):
            assert server.worker(worker_id)["num_damaged_blocks"] == 0
