"""What happens to requests when memory is short, workers die, clients leave, KV has to travel."""

from dataclasses import replace

import pytest
from tests.sim.plans import APART, BLOCK_SIZE, COSTS, MIXED, OWNER, READER, fresh, plan_of, serve, steady_load

from diptych.core.ids import WorkerId
from diptych.core.messages import Role
from diptych.sim.cluster import SimulatedCluster
from diptych.sim.outcome import RequestOutcome
from diptych.sim.plan import Failure, LinkPlan, RoleFlip, TierPlan, WorkerGroup
from diptych.sim.prompts import FollowUp

ONE_EACH = (WorkerGroup(Role.PREFILL, 1, READER), WorkerGroup(Role.DECODE, 1, OWNER))
LATENCY_S = 1e-3
"""What a few letters come to."""


def test_who_comes_last_loses_its_blocks_and_ends_all_the_same() -> None:
    num_blocks = 2 * (640 // BLOCK_SIZE + 2)
    groups = (ONE_EACH[0], WorkerGroup(Role.DECODE, 1, replace(OWNER, num_blocks=num_blocks)))
    plan = replace(plan_of(groups), max_tokens=300)
    outcomes, events = serve(plan, [fresh(number, number * 0.01, 640, 300) for number in range(2)])
    assert [outcome.num_preemptions > 0 for outcome in outcomes] == [False, True]
    assert [outcome.end for outcome in outcomes] == ["finished"] * 2
    assert {event.request for event in events if event.kind == "preempted"} == {"r1"}
    first, last = outcomes
    assert first.finished_s is not None and last.finished_s is not None
    assert last.finished_s - first.finished_s > 100 * COSTS.step_s([(1, 640)])  # it has written them once more


def test_a_death_moves_answers_and_nothing_is_lost() -> None:
    plan = plan_of(APART, failures=(Failure(1.5, WorkerId("decode-0"), None),))
    outcomes, events = serve(plan, steady_load(12))
    assert {outcome.end for outcome in outcomes} == {"finished"}
    moved = [outcome for outcome in outcomes if outcome.num_migrations]
    assert moved and {outcome.owner for outcome in moved} == {"decode-1"}
    assert all(outcome.owner == "decode-1" for outcome in outcomes if outcome.offered.arrival_s > 1.6)
    placed = [
        event.worker for event in events if event.kind == "placed" and event.request == f"r{outcomes.index(moved[0])}"
    ]
    assert placed == ["decode-0", "decode-1"]


def test_a_dead_readers_prompts_are_read_by_their_owner_from_where_it_was() -> None:
    long = fresh(0, 0.0, 8 * 1024, 4)
    undisturbed, _ = serve(plan_of(ONE_EACH), [long])
    death_s = undisturbed[0].ttft_s * 0.8
    disturbed, events = serve(plan_of(ONE_EACH, failures=(Failure(death_s, WorkerId("prefill-0"), None),)), [long])
    assert disturbed[0].end == "finished"
    read = {event.worker: 0 for event in events if event.kind == "steps"}
    for event in events:
        if event.kind == "steps":
            read[event.worker] += event.num_prompt_tokens
    assert 0 < read["decode-0"] < 4 * 1024, "most had been read, and was not read again"


TWO_OWNERS = (ONE_EACH[0], WorkerGroup(Role.DECODE, 2, OWNER))
APART_OWNERS = (
    WorkerGroup(Role.PREFILL, 1, READER, ("a",)),
    WorkerGroup(Role.DECODE, 2, OWNER, ("a", "b")),
)


def test_an_answer_goes_on_with_the_kv_that_its_dead_worker_has_left_on_the_machine() -> None:
    """On another machine all of it is computed again."""
    fast = LinkPlan(bytes_per_s=1e15, latency_s=0.0, kv_bytes_per_token=1.0)
    load, tokens_s = [fresh(0, 0.0, 900, 100)], 100 * COSTS.step_s([(1, 950)])
    (undisturbed,), _ = serve(plan_of(TWO_OWNERS), load)
    assert undisturbed.finished_s is not None
    death = Failure(undisturbed.ttft_s + 0.7 * tokens_s, WorkerId("decode-0"), None)
    (near,), events = serve(plan_of(TWO_OWNERS, failures=(death,)), load)
    (far,), _ = serve(plan_of(APART_OWNERS, link=fast, failures=(death,)), load)
    assert near.finished_s is not None and far.finished_s is not None
    assert near.num_migrations == far.num_migrations == 1
    assert near.finished_s - undisturbed.finished_s < 0.1 * tokens_s, "a pause, and the step that was under way"
    assert far.finished_s - undisturbed.finished_s > 0.6 * tokens_s + undisturbed.ttft_s
    assert sum(event.num_prompt_tokens for event in events if event.kind == "steps") == 900


def test_a_successor_finds_its_prefix_cache_and_the_full_blocks_of_answers() -> None:
    first = fresh(0, 0.0, 900, 100)
    (undisturbed,), _ = serve(plan_of(ONE_EACH), [first])
    assert undisturbed.finished_s is not None
    death = Failure(0.9 * undisturbed.finished_s, WorkerId("decode-0"), 0.5)
    again = first._replace(arrival_s=3 * undisturbed.finished_s)
    outcomes, _ = serve(plan_of(ONE_EACH, failures=(death,)), [first, again])
    assert [outcome.end for outcome in outcomes] == ["finished"] * 2
    assert outcomes[0].finished_s is not None
    lost_s = outcomes[0].finished_s - undisturbed.finished_s - 0.5
    assert lost_s < BLOCK_SIZE * COSTS.step_s([(1, 1000)]) + 0.1, "of nearly 90 tokens, and the prompt"
    assert outcomes[1].num_cached_tokens == 900 // BLOCK_SIZE * BLOCK_SIZE


def test_a_worker_that_comes_back_gets_requests_again() -> None:
    plan = plan_of(ONE_EACH, failures=(Failure(1.0, WorkerId("decode-0"), 1.0),))
    outcomes, events = serve(plan, steady_load(20))
    assert {outcome.end for outcome in outcomes} == {"finished"}
    assert [event.kind for event in events if event.worker == "decode-0" and event.kind in {"up", "died"}] == [
        "up",
        "died",
        "up",
    ]


def test_when_nobody_is_left_requests_fail_with_a_reason() -> None:
    plan = plan_of(ONE_EACH, failures=(Failure(0.05, WorkerId("decode-0"), None),))
    outcomes, _ = serve(plan, [fresh(0, 0.0, 900, 50), fresh(1, 1.0, 900, 50)])
    assert [outcome.end for outcome in outcomes] == ["failed"] * 2
    assert all("no worker" in outcome.reason for outcome in outcomes)


def test_clients_that_leave_give_their_places_back() -> None:
    plan = plan_of(ONE_EACH, patience_s=1.0)
    outcomes, _ = serve(plan, [fresh(0, 0.0, 900, 900), fresh(1, 3.0, 900, 5)])  # checks that no block is left in use
    assert [outcome.end for outcome in outcomes] == ["failed", "finished"]
    assert "left after 1 s" in outcomes[0].reason


@pytest.mark.parametrize("does_overlap", [False, True])
def test_kv_between_machines_takes_the_time_that_the_link_says(does_overlap: bool) -> None:
    link = LinkPlan(bytes_per_s=1e9, latency_s=0.0, kv_bytes_per_token=1e6, does_overlap=does_overlap)
    far = (WorkerGroup(Role.PREFILL, 1, READER, ("a",)), WorkerGroup(Role.DECODE, 1, OWNER, ("b",)))
    request = fresh(0, 0.0, 2048, 3)
    (near,), _ = serve(plan_of(ONE_EACH), [request])
    (away,), events = serve(plan_of(far, link=link), [request])
    assert away.ttft_s == pytest.approx(near.ttft_s, abs=LATENCY_S), "the first token does not wait for KV"
    assert away.finished_s is not None and near.finished_s is not None
    sent_s, last_chunk_s = 2048 * 1e6 / 1e9, COSTS.step_s([(1024, 1024)])
    saved_s = min(last_chunk_s, sent_s / 2) if does_overlap else 0.0
    assert away.finished_s - near.finished_s == pytest.approx(sent_s - saved_s, abs=LATENCY_S)
    (sent,) = [event for event in events if event.kind == "sent"]
    assert (sent.worker, sent.reader, sent.num_prompt_tokens) == ("prefill-0", "decode-0", 2048)


def test_transfers_that_share_a_port_share_its_speed() -> None:
    link = LinkPlan(bytes_per_s=1e9, latency_s=0.0, kv_bytes_per_token=1e6, does_overlap=False)
    two = (WorkerGroup(Role.PREFILL, 2, READER, ("a", "b")), WorkerGroup(Role.DECODE, 1, OWNER, ("c",)))
    (alone,), _ = serve(plan_of(two, link=link), [fresh(0, 0.0, 1024, 2)])
    both, _ = serve(plan_of(two, link=link), [fresh(0, 0.0, 1024, 2), fresh(1, 0.0, 1024, 2)])
    assert {outcome.reader for outcome in both} == {"prefill-0", "prefill-1"}
    assert alone.finished_s is not None
    for outcome in both:  # both end when twice the bytes have gone through the receiver's port
        assert outcome.finished_s == pytest.approx(alone.finished_s + 1.024, abs=0.01)


def test_a_prompts_chunks_follow_each_other_through_the_stages() -> None:
    """As in Mooncake: chunk k is in the second stage while k + 1 is in the first."""
    request = fresh(0, 0.0, 4 * 1024, 1)
    (plain,), _ = serve(plan_of(ONE_EACH), [request])
    staged = (WorkerGroup(Role.PREFILL, 1, replace(READER, pipeline_stages=3)), ONE_EACH[1])
    (piped,), _ = serve(plan_of(staged), [request])
    assert piped.ttft_s - plain.ttft_s == pytest.approx(2 * COSTS.step_s([(1024, 3 * 1024)]), rel=0.05)


def test_an_answers_tokens_go_through_all_stages() -> None:
    staged = (ONE_EACH[0], WorkerGroup(Role.DECODE, 1, replace(OWNER, pipeline_stages=2)))
    (outcome,), _ = serve(plan_of(staged), [fresh(0, 0.0, 640, 11)])
    assert outcome.tpot_s == pytest.approx(2 * COSTS.step_s([(1, 645)]), rel=0.02)


def test_prefill_first_makes_answers_wait_for_whole_prompts() -> None:
    one = (WorkerGroup(Role.MIXED, 1, OWNER),)
    first = (WorkerGroup(Role.MIXED, 1, replace(OWNER, batching="prefill-first")),)
    load = [fresh(0, 0.0, 128, 60), fresh(1, 0.5, 6 * 1024, 2)]
    chunked, _ = serve(plan_of(one), load)
    whole, events = serve(plan_of(first), load)
    assert whole[1].ttft_s < chunked[1].ttft_s
    assert whole[0].tpot_s > COSTS.step_s([(1, 150)])
    assert not [event for event in events if event.num_answers and event.num_prompt_tokens]


def test_what_memory_has_lost_is_loaded_from_below() -> None:
    small = (ONE_EACH[0], WorkerGroup(Role.DECODE, 1, replace(OWNER, num_blocks=80)))
    plan = replace(plan_of(small, tier=TierPlan(num_blocks=1_000, load_block_s=1e-4)), max_tokens=100)
    load = [
        fresh(0, 0.0, 2048, 2),
        *(fresh(number, 2.0 * number, 2048, 2) for number in (1, 2)),
        fresh(0, 9.0, 2048, 2),
    ]
    outcomes, _ = serve(plan, load)
    assert outcomes[3].num_cached_tokens == 2048 - BLOCK_SIZE
    assert outcomes[3].num_loaded_tokens >= 1024
    assert outcomes[3].ttft_s < outcomes[0].ttft_s / 2
    without, _ = serve(replace(plan, tier=None), load)
    assert without[3].num_cached_tokens == outcomes[3].num_cached_tokens - outcomes[3].num_loaded_tokens


def test_a_flipped_worker_does_the_other_work() -> None:
    owners = (WorkerGroup(Role.PREFILL, 2, OWNER), WorkerGroup(Role.DECODE, 1, OWNER))
    outcomes, _ = serve(plan_of(owners, flips=(RoleFlip(2.0, WorkerId("prefill-0"), Role.DECODE),)), steady_load(30))
    before = {outcome.owner for outcome in outcomes if outcome.offered.arrival_s < 1.9}
    after = {outcome.owner for outcome in outcomes if outcome.offered.arrival_s > 2.6}
    assert before == {"decode-0"}
    assert after == {"decode-0", "prefill-0"}


def test_a_conversation_goes_on_when_the_answer_has_come() -> None:
    first = fresh(0, 0.0, 640, 10)
    turn = FollowUp(1.0, 1280, 10, (*first.block_numbers, *range(500, 510)))
    outcomes, _ = serve(plan_of(MIXED, "prefix-local"), [first._replace(follow_ups=(turn,))])
    assert outcomes[0].finished_s is not None
    assert outcomes[1].offered.arrival_s == pytest.approx(outcomes[0].finished_s + 1.0)
    assert outcomes[1].num_cached_tokens == 640
    cut, _ = serve(plan_of(MIXED, until_s=1.0), [first._replace(follow_ups=(turn,))])
    assert len(cut) == 1


def test_a_stream_is_served_without_being_kept() -> None:
    ended: list[RequestOutcome] = []
    cluster = SimulatedCluster(plan_of(APART, until_s=30.0))
    endless = (fresh(number, number * 0.1, 300, 5) for number in range(10**9))
    assert cluster.serve(endless, ended.append) == []
    assert len(ended) == 300
    ends_s = [outcome.finished_s or 0.0 for outcome in ended]
    assert ends_s == sorted(ends_s)


def test_units_keep_their_requests_caches_and_deaths_to_themselves() -> None:
    load = [fresh(number // 2, number * 0.4, 1024, 10) for number in range(12)]  # each prompt twice, once in each unit
    plan = replace(plan_of(ONE_EACH), num_units=2)
    assert list(plan.workers) == ["prefill-0", "decode-0", "prefill-1", "decode-1"]
    outcomes, _ = serve(plan, load)
    assert [outcome.owner for outcome in outcomes] == ["decode-0", "decode-1"] * 6
    assert [outcome.reader for outcome in outcomes] == ["prefill-0", "prefill-1"] * 6
    assert {outcome.num_cached_tokens for outcome in outcomes} == {0}
    together, _ = serve(plan_of(APART), load)
    assert max(outcome.num_cached_tokens for outcome in together) > 0

    death = Failure(1.0, WorkerId("decode-1"), None)
    outcomes, _ = serve(replace(plan, failures=(death,)), load)
    assert {outcome.end for outcome in outcomes[::2]} == {"finished"}
    assert {outcome.end for outcome in outcomes[5::2]} == {"failed"}, "nobody is left in their unit"


def test_a_conversation_stays_in_its_unit() -> None:
    first = fresh(0, 0.0, 640, 10)
    turns = tuple(
        FollowUp(1.0, 640 * count, 10, (*first.block_numbers, *range(500, 500 + 10 * (count - 1)))) for count in (2, 3)
    )
    others = [fresh(number, 0.3 * number, 640, 5) for number in range(1, 4)]
    plan = replace(plan_of(ONE_EACH), num_units=2)
    outcomes, _ = serve(plan, [first._replace(follow_ups=turns), *others])
    talk = [outcome for outcome in outcomes if outcome.offered.block_numbers[0] == first.block_numbers[0]]
    assert [outcome.owner for outcome in talk] == ["decode-0"] * 3
    assert [outcome.num_cached_tokens for outcome in talk] == [0, 640, 1280]
