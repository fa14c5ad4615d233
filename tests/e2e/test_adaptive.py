"""The default set-up: workers that help each other out give the same answers, and either of them can go on alone."""

import os
import signal

import pytest
from tests.live_server import LiveServer, Serving, eventually
from tests.modeled_answers import expected_text, make_prompt

from diptych.frontend.text.tokenizer import Tokenizer

BUSY = {"engine": "modeled", "modeled_time_scale": 0.1, "adaptive": True, "slo_tpot_s": 0.006, "admission": "none"}


def writers(server: LiveServer) -> set[str]:
    """Return who has written answers."""
    return {record["decode_worker"] for record in server.records()}


def test_under_load_every_answer_is_right_whoever_writes(serving: Serving, tokenizer: Tokenizer) -> None:
    prompts = [make_prompt(20 + 17 * number % 90, number) for number in range(40)]
    with serving(**BUSY) as server:
        answers = server.complete_all(prompts, max_tokens=30)
        assert [answer.text for answer in answers] == [expected_text(tokenizer, prompt, 30) for prompt in prompts]
        server.wait_until_idle()
        assert writers(server) <= {"decode-0", "prefill-0"}, "which of them depends on how long steps took"
        shares = [server.worker(name)["prefill_share"] for name in ("decode-0", "prefill-0")]
        assert all(0 <= share <= 1 for share in shares)


def test_a_request_alone_is_read_by_the_one_and_written_by_the_other(serving: Serving, tokenizer: Tokenizer) -> None:
    with serving(engine="modeled", adaptive=True, modeled_time_scale=0.1) as server:
        prompt = make_prompt(300, 1)
        assert server.complete(prompt).text == expected_text(tokenizer, prompt, 16)
        (record,) = server.records()
        assert (record["decode_worker"], record["prefill_worker"]) == ("decode-0", "prefill-0")


@pytest.mark.parametrize("victim", ["decode-0", "prefill-0"])
def test_the_worker_that_is_left_does_all(serving: Serving, tokenizer: Tokenizer, victim: str) -> None:
    with serving(**BUSY) as server:
        os.kill(server.worker(victim)["pid"], signal.SIGKILL)
        eventually(lambda: server.worker(victim)["state"] == "dead", "news of the death")
        prompts = [make_prompt(150, seed) for seed in range(6)]
        answers = server.complete_all(prompts, max_tokens=20)
        assert [answer.text for answer in answers] == [expected_text(tokenizer, prompt, 20) for prompt in prompts]
        assert writers(server) == {"decode-0", "prefill-0"} - {victim}
        assert server.http.get("/ready").status_code == 200


@pytest.mark.slow
def test_the_real_model_answers_the_same_whoever_writes(serving: Serving, smol_server: LiveServer) -> None:
    prompts = [f"Day {day} of the voyage, and the crew of the little ship wrote down what" for day in range(1, 25)]
    alone = [smol_server.complete(prompt, max_tokens=24).text for prompt in prompts]
    with serving(adaptive=True, slo_tpot_s=0.02) as server:
        answers = server.complete_all(prompts, max_tokens=24)
        assert [answer.text for answer in answers] == alone
        server.wait_until_idle()
