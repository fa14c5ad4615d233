"""A worker goes on with an answer that a dead one was writing: the same tokens, and nothing computed that is there."""

import pytest
from llguidance import LLMatcher
from tests.worker.role_cluster import Heard, RoleCluster, start_roles

from diptych.core.events import FinishReason
from diptych.core.messages import Aborted, FrontendGone, Submit
from diptych.core.request import Request, SamplingParams
from diptych.engine.modeled_engine import expected_tokens

LONG = [7 * i % 900 for i in range(200)]
VOCAB_SIZE = 1000


def answer_until(cluster: RoleCluster, heard: Heard, num_tokens: int, worker: str = "decode-0") -> None:
    """Go on until so many tokens have been heard of."""
    for _ in range(1000):
        if len(heard.tokens) >= num_tokens:
            return
        cluster.deliver_all()
        for name in list(cluster.workers):
            cluster.step(name)
    pytest.fail(f"{worker} does not answer")


def finish(cluster: RoleCluster) -> None:
    cluster.run()
    cluster.check_answers()
    cluster.check_idle()


@pytest.mark.parametrize("num_tokens", [1, 2, 20, 24, 25, 26, 57])
@pytest.mark.parametrize("has_written", [False, True])
def test_another_worker_adopts_what_is_in_the_blocks(num_tokens: int, has_written: bool) -> None:
    cluster = start_roles(num_decode=2)
    heard = cluster.submit(LONG, 60)
    answer_until(cluster, heard, num_tokens)
    num_known = len(heard.tokens)
    cluster.deliver_all()
    cluster.begin("decode-0")
    cluster.kill("decode-0", has_written=has_written)
    cluster.migrate(heard, "decode-0", "decode-1", prefill="prefill-0")
    heir = cluster.workers["decode-1"]
    finish(cluster)

    assert heard.answer == expected_tokens(LONG, 60, VOCAB_SIZE)
    assert heir.num_steps == 60 - num_known, "one step a token: nothing that was there is computed again"


def test_the_successor_finds_its_cache_and_goes_on(num_decode: int = 1) -> None:
    cluster = start_roles(num_decode=num_decode)
    heard = cluster.submit(LONG[:100], 60)
    other = cluster.submit([*LONG[:64], 1, 2, 3, 4], 4)
    answer_until(cluster, heard, 40)
    cluster.kill("decode-0")
    cluster.revive("decode-0")
    cache = cluster.workers["decode-0"].decode.blocks.cache
    assert cache.num_cached_blocks >= 4
    assert cache.num_available_blocks == cache.num_blocks
    for one in (heard, other):
        if one.choices[0].end is None:
            cluster.migrate(one, "decode-0", "decode-0", prefill="prefill-0")
    finish(cluster)
    assert heard.answer == expected_tokens(LONG[:100], 60, VOCAB_SIZE)
    late = cluster.submit([*LONG[:96], 5, 6, 7])
    finish(cluster)
    assert late.finished.num_cached_tokens == 96


def test_blocks_that_were_reserved_anew_are_not_adopted() -> None:
    cluster = start_roles(num_decode=2)
    heard = cluster.submit(LONG, 60)
    answer_until(cluster, heard, 30)
    cluster.kill("decode-0")
    cluster.header.reserve(cluster.header.owned_blocks("decode-0"), 2**60)  # type: ignore[arg-type]
    cluster.migrate(heard, "decode-0", "decode-1", prefill="prefill-0")
    finish(cluster)
    assert heard.answer == expected_tokens(LONG, 60, VOCAB_SIZE)


def test_a_prompt_that_was_half_read_is_read_on(num_blocks: int = 40) -> None:
    cluster = start_roles(num_prefill=0, num_decode=0, num_mixed=2, num_blocks=num_blocks, chunk_tokens=48)
    heard = cluster.submit(LONG, 10, to="mixed-0", prefill=None)
    cluster.deliver_all()
    for _ in range(3):
        cluster.step("mixed-0")
    assert not heard.tokens
    cluster.kill("mixed-0")
    cluster.migrate(heard, "mixed-0", "mixed-1")
    heir = cluster.workers["mixed-1"]
    finish(cluster)
    assert heard.answer == expected_tokens(LONG, 10, VOCAB_SIZE)
    assert heir.num_steps == 2 + 9, "two chunks of 48 and fewer are left of 200 after 144"


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.0, "seed": 5},
        {"presence_penalty": 1.5, "frequency_penalty": 2.0, "repetition_penalty": 1.3},
        {"grammar": LLMatcher.grammar_from_regex("[a-c]( [d-k]{2}){9,20}"), "temperature": 0.7},
        {"num_logprobs": 2},
    ],
)
def test_what_shapes_an_answer_goes_on_too(sampling: dict[str, object]) -> None:
    cluster = start_roles(num_decode=2)
    heard = cluster.submit(LONG[:70], 40, num_choices=3, **sampling)  # type: ignore[arg-type]
    answer_until(cluster, heard, 12)
    cluster.kill("decode-0")
    cluster.migrate(heard, "decode-0", "decode-1", prefill="prefill-0")
    finish(cluster)
    assert all(choice.finished for choice in heard.choices)


def test_in_exact_mode_a_sequence_still_gets_its_own_blocks_back() -> None:
    cluster = start_roles(num_decode=2, is_exact=True)
    heard = cluster.submit(LONG[:70], 100)
    answer_until(cluster, heard, 90)
    num_known = len(heard.tokens)
    cluster.kill("decode-0")
    cluster.migrate(heard, "decode-0", "decode-1", prefill="prefill-0")
    heir = cluster.workers["decode-1"]
    finish(cluster)
    assert heir.num_steps == 100 - num_known


def test_an_answer_that_was_complete_ends_at_once() -> None:
    cluster = start_roles(num_decode=2)
    heard = cluster.submit(LONG[:70], 1)
    while not heard.tokens:
        cluster.deliver_all()
        cluster.step("prefill-0")
        if cluster.letters.queues.get(("prefill-0", "router")):
            cluster.deliver("prefill-0", "router")
    heard.choices[0].end = None
    cluster.kill("decode-0")
    cluster.migrate(heard, "decode-0", "decode-1", prefill="prefill-0")
    finish(cluster)
    assert heard.finished.reason is FinishReason.LENGTH
    assert cluster.workers["decode-1"].num_steps == 0


def test_a_grant_that_comes_after_its_senders_death_is_not_filled() -> None:
    cluster = start_roles()
    cluster.submit(LONG)
    cluster.deliver("router", "decode-0")
    cluster.kill("decode-0", num_letters_sent=1)
    cluster.deliver("router", "prefill-0")  # the news is faster than the grant
    cluster.deliver("decode-0", "prefill-0")
    assert not cluster.begin("prefill-0")


def test_nothing_is_kept_for_a_frontend_that_is_gone() -> None:
    cluster = start_roles()
    heard = cluster.submit(LONG, 60)
    answer_until(cluster, heard, 5)
    waiting = cluster.submit(LONG[:50], 5)
    cluster.deliver_all()
    for one in (heard, waiting):
        one.choices[0].is_abort_asked = True
    cluster.letters.send("router", "decode-0", FrontendGone(incarnation=1))
    finish(cluster)
    assert isinstance(heard.choices[0].end, Aborted)


def test_requests_of_the_next_frontend_stay() -> None:
    cluster = start_roles()
    heard = cluster.submit(LONG[:40], 5)
    letters = cluster.letters.queues["router", "decode-0"]
    letters.clear()
    request = Request(
        request_id=heard.request.request_id,
        prompt_token_ids=LONG[:40],
        sampling=SamplingParams(max_tokens=5, temperature=0.0),
        deadline_s=heard.request.deadline_s,
        arrived_s=heard.request.arrived_s,
    )
    cluster.letters.send("router", "decode-0", Submit(request=request, attempt=0, prefill=None, frontend=2))
    cluster.letters.send("router", "decode-0", FrontendGone(incarnation=1))
    finish(cluster)
    assert heard.answer == expected_tokens(LONG[:40], 5, VOCAB_SIZE)
