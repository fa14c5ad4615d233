"""Routing by name over HTTP, and a prefix that one worker copies from another's cache."""

from typing import get_args

import pytest
from tests.live_server import LiveServer, Serving, StartServer
from tests.modeled_answers import expected_text, make_prompt

from diptych.core.control import RoutingName
from diptych.frontend.text.tokenizer import Tokenizer

HOT = make_prompt(320, 1)
TWO_OWNERS = {"routing": "kv-centric", "prefill": 0, "decode": 2, "slo_tpot_s": 1e-4}
"""With an SLO that nobody can keep, a request goes to whoever misses it by the least: not to the busy."""


def ask_both(server: LiveServer, first: list[int], second: list[int]) -> tuple[str, str, int]:
    """Ask for `second` while a long answer to `first` is being written; return both owners, and what was cached."""
    with server.stream(first, max_tokens=400) as running:
        running.read(3)
        answer = server.complete(second, max_tokens=8)
        owner = server.records()[-1]["decode_worker"]
        running.read()
    return server.records()[-1]["decode_worker"], owner, answer.num_cached_tokens


def test_a_hot_prefix_is_copied_from_the_busy_worker(modeled_server: StartServer, tokenizer: Tokenizer) -> None:
    server = modeled_server(modeled_time_scale=0.1, **TWO_OWNERS)
    busy, other, num_cached = ask_both(server, HOT, [*HOT, 300, 301, 302])
    assert {busy, other} == {"decode-0", "decode-1"}
    assert num_cached == 320
    for rest in ([400] * 40, [500] * 3):
        prompt = HOT + rest
        assert server.complete(prompt).text == expected_text(tokenizer, prompt, 16)
    server.wait_until_idle()
    assert all(server.worker(name)["copy_block_s"] > 0 for name in ("decode-0", "decode-1"))


@pytest.mark.slow
@pytest.mark.parametrize("routing", [name for name in get_args(RoutingName) if name != "predicted"])
def test_answers_are_right_whoever_is_chosen(serving: Serving, tokenizer: Tokenizer, routing: str) -> None:
    prompts = [HOT[: 32 * (number % 8)] + make_prompt(9 + number, number) for number in range(24)]
    with serving(engine="modeled", routing=routing, decode=2, routing_temperature=0.5) as server:
        answers = server.complete_all(prompts, max_tokens=20)
        assert [answer.text for answer in answers] == [expected_text(tokenizer, prompt, 20) for prompt in prompts]
        server.wait_until_idle()


@pytest.mark.slow
def test_the_real_model_goes_on_from_copied_blocks(serving: Serving, smol_server: LiveServer) -> None:
    story = "The keeper of the lighthouse counted the ships that passed, and wrote them into a book. " * 12
    alone = smol_server.complete(story + "One night", max_tokens=8).text
    with serving(**TWO_OWNERS) as server:
        with server.stream(story, max_tokens=300) as running:
            running.read(3)
            answer = server.complete(story + "One night", max_tokens=8)
        assert answer.text == alone
        assert answer.num_cached_tokens >= 160
        server.wait_until_idle()
        assert {record["decode_worker"] for record in server.records()} == {"decode-0", "decode-1"}
