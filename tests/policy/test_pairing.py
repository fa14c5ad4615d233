"""Pairs of workers by predicted times: the decode worker fills up first, and idle cores help out."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.policy.loads import BLOCK_SIZE, LOADS, idle, reading, writing

from diptych.core.ids import WorkerId
from diptych.core.messages import Role
from diptych.core.slo import Slo
from diptych.policy.pairing import Pair, WorkerLoad, choose_pair

SLO = Slo(1.0, 0.02)


def choose(*loads: WorkerLoad, prompt: int = 200, slo: Slo = SLO, cached: dict[WorkerId, int] | None = None) -> Pair:
    pair = choose_pair(prompt, cached or {}, loads, slo, 60.0, prompt + 100, BLOCK_SIZE, 8)
    assert pair is not None
    return pair


PREFILL, DECODE = idle(Role.PREFILL), idle(Role.DECODE)


def pair_of(pair: Pair) -> tuple[str, str]:
    return pair.owner, pair.reader


def test_on_idle_workers_each_phase_has_its_own() -> None:
    assert pair_of(choose(PREFILL, DECODE)) == ("decode-0", "prefill-0")


def test_the_decode_worker_fills_up_before_a_prefill_worker_writes() -> None:
    owners = [choose(PREFILL, writing(DECODE, count)).owner for count in range(40)]
    first_elsewhere = owners.index(WorkerId("prefill-0"))
    assert 5 < first_elsewhere < 20
    assert set(owners[:first_elsewhere]) == {"decode-0"}
    assert set(owners[first_elsewhere:]) == {"prefill-0"}


def test_answers_spread_over_decode_workers() -> None:
    """A decode worker that stands idle saves nobody any time."""
    busy, other = writing(DECODE, 3), idle(Role.DECODE, 1)
    assert choose(PREFILL, busy, other).owner == "decode-1"
    cached = {busy.worker_id: 192}
    assert choose(PREFILL, busy, other, cached=cached).owner == "decode-0", "what it need not read is worth more"


def test_a_prefill_worker_that_is_busy_reading_writes_nothing_more() -> None:
    busy = replace(PREFILL, prefill_share=0.95)
    assert choose(busy, writing(DECODE, 14)).owner == "decode-0"
    full = replace(writing(DECODE, 14), num_used_blocks=500)
    assert choose(busy, full).owner == "decode-0", "it waits there"


def test_a_longer_queue_elsewhere_makes_the_decode_worker_read_itself() -> None:
    readers = [choose(reading(PREFILL, count, count * 2_000), DECODE, prompt=2_000).reader for count in range(6)]
    assert readers[0] == "prefill-0"
    assert readers[-1] == "decode-0"
    assert readers == sorted(readers, reverse=True), "and it is never the other way round"


def test_a_queue_of_short_prompts_is_shorter_than_one_long_prompt() -> None:
    long, short = reading(idle(Role.PREFILL, 0), 1, 20_000), reading(idle(Role.PREFILL, 1), 40, 20_000)
    slo, busy = Slo(100.0, 0.02), writing(DECODE, 4)
    assert choose(long, short, busy, prompt=1_000, slo=slo).reader == "prefill-1", "they do not attend to each other"
    alone = choose(short, busy, prompt=1_000, slo=slo).ttft_s
    separate_s = 40 * short.read_s(500, 0) + short.read_s(1_000, 0)
    assert 0.85 * separate_s < alone <= separate_s, "chunks of several prompts are fuller than those of each alone"


def test_a_decode_worker_without_time_in_hand_leaves_prompts_to_others() -> None:
    busy = writing(DECODE, 12)
    assert choose(reading(PREFILL, 1, 400), busy).reader == "prefill-0"


def test_short_rests_are_read_by_the_owner() -> None:
    assert pair_of(choose(PREFILL, DECODE, prompt=264, cached={WorkerId("decode-0"): 256})) == ("decode-0", "decode-0")


def test_a_cached_prefix_draws_its_request() -> None:
    other = idle(Role.DECODE, 1)
    assert choose(PREFILL, DECODE, other, prompt=1_000, cached={other.worker_id: 960}).owner == "decode-1"


def test_the_faster_of_two_readers_is_chosen() -> None:
    slow = idle(Role.PREFILL, 0, cost_scale=3.0)
    fast = idle(Role.PREFILL, 1)
    assert choose(slow, fast, DECODE, prompt=1_000).reader == "prefill-1"


def test_whoever_cannot_hold_the_answer_does_not_get_it() -> None:
    small = idle(Role.DECODE, num_blocks=5)
    assert choose(PREFILL, small).owner == "prefill-0"
    nobody = choose_pair(200, {}, [small], SLO, 60.0, 300, BLOCK_SIZE, 8)
    assert nobody is None


def test_a_full_worker_comes_last() -> None:
    full = replace(DECODE, num_used_blocks=499)
    assert choose(PREFILL, full, idle(Role.DECODE, 1, num_answers=30, num_context_tokens=9_000)).owner != "decode-0"


@given(LOADS, st.integers(1, 3_000), st.randoms(use_true_random=False))
def test_a_pair_is_of_accepting_workers_whatever_the_order(loads: list[WorkerLoad], prompt: int, random: Any) -> None:
    pair = choose_pair(prompt, {}, loads, SLO, 60.0, prompt + 10, BLOCK_SIZE, 8)
    able = {load.worker_id for load in loads if load.is_accepting and load.num_blocks * BLOCK_SIZE >= prompt + 10}
    accepting = {load.worker_id: load.role for load in loads if load.is_accepting}
    shuffled = list(loads)
    random.shuffle(shuffled)
    assert choose_pair(prompt, {}, shuffled, SLO, 60.0, prompt + 10, BLOCK_SIZE, 8) == pair
    if pair is None:
        assert not able
        return
    assert pair.owner in able
    assert pair.reader == pair.owner or accepting[pair.reader] is Role.PREFILL
    assert pair.ttft_s > 0
    assert pair.step_s > 0
