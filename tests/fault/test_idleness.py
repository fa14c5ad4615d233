"""After a time in which nobody asked anything, everything answers at once."""

import time

import pytest
from tests.live_server import Serving
from tests.modeled_answers import expected_text, make_prompt

from diptych.frontend.text.tokenizer import Tokenizer

IDLE_S = 3.0
"""Longer than any beat or patience in the server but those of its clients."""


@pytest.mark.slow
def test_after_idleness_the_same_workers_answer_at_once(serving: Serving, tokenizer: Tokenizer) -> None:
    with serving(engine="modeled", client_timeout_s=1.0) as server:
        lives = {worker: server.incarnation(worker) for worker in server.status()["workers"]}
        for seed in range(2):
            prompt = make_prompt(100, seed)
            assert server.complete(prompt).text == expected_text(tokenizer, prompt, 16)
            assert server.records()[-1]["prefill_worker"] == "prefill-0"
            server.wait_until_idle()
            time.sleep(IDLE_S * (1 - seed))
        assert {worker: server.incarnation(worker) for worker in lives} == lives
