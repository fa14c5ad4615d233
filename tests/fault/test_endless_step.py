"""A step that never returns, in a process that otherwise lives: its loop turns, it says that it is alive, it computes
nothing. It is found by its missed progress, and its requests go on elsewhere.
"""

import time
from collections.abc import Iterator
from dataclasses import replace

import msgspec
import pytest
from tests.live_server import LiveServer, StartServer, eventually
from tests.modeled_answers import expected_text, make_prompt

from diptych.core.control import WorkerOrder
from diptych.core.ids import WorkerId
from diptych.frontend.text.tokenizer import Tokenizer
from diptych.hardware.known_costs import modeled_costs
from diptych.launch.orders import Orders
from diptych.worker.lifeline import STEP_GRACE_S

TIME_SCALE = 0.1
ENDLESS = replace(modeled_costs(TIME_SCALE), past_token_s=100.0)
"""A prompt's second chunk takes seven hours, as does the first token of an answer after the one that prefill brings."""
FOUND_WITHIN_S = STEP_GRACE_S + 1.5
"""From the begin of the step to the worker's death, as the router learns of it; on a busy machine more."""


@pytest.fixture(params=["prefill-0", "decode-0"])
def endless(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerId]:
    """Have the first life of a worker compute for ever, while everybody, itself too, expects the usual time."""
    endless_id, write, lives = WorkerId(request.param), Orders.worker, set[int]()

    def worker(orders: Orders, worker_id: WorkerId, incarnation: int, segment_descriptor: int) -> WorkerOrder:
        order = write(orders, worker_id, incarnation, segment_descriptor)
        if worker_id != endless_id:
            return order
        lives.add(incarnation)
        is_first = incarnation == min(lives)
        return msgspec.structs.replace(order, modeled_costs=ENDLESS) if is_first else order

    monkeypatch.setattr(Orders, "worker", worker)
    yield endless_id


@pytest.mark.slow
def test_an_endless_step_is_found_and_ended(
    modeled_server: StartServer, tokenizer: Tokenizer, endless: WorkerId
) -> None:
    server = modeled_server(decode=2, modeled_time_scale=TIME_SCALE)
    before = server.incarnation(endless)
    prompts = [make_prompt(300 + index, 50 + index) for index in range(4)]
    begin_s = time.monotonic()
    answers = server.complete_all(prompts, max_tokens=60)
    took_s = time.monotonic() - begin_s
    assert [answer.text for answer in answers] == [expected_text(tokenizer, prompt, 60) for prompt in prompts]
    assert took_s > STEP_GRACE_S, "no step was endless"
    assert took_s < 10 * FOUND_WITHIN_S, "found, but not by its missed progress"
    eventually(lambda: server.incarnation(endless) > before, "a successor")
    server.wait_until_up(endless)
    late = make_prompt(100, 99)
    assert server.complete(late).text == expected_text(tokenizer, late, 16)
    server.wait_until_idle()
    _check_who_moved(server, endless)


def _check_who_moved(server: LiveServer, endless: WorkerId) -> None:
    num_moved = sum(record["num_migrations"] for record in server.records())
    assert (num_moved > 0) == endless.startswith("decode"), (
        "a reader's death moves no request, a writer's moves its own"
    )
