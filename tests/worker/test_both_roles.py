"""A prefill worker that also writes answers: one order of prompts, shared steps, and no error is another's."""

from typing import Any

import pytest
from tests.worker.role_cluster import RoleCluster, start_roles

from diptych.core.errors import BlockTableError
from diptych.core.messages import Failed, FailureKind
from diptych.worker.both_roles import BothRoles

LONG = [(7 * number) % 900 for number in range(400)]
HOME: dict[str, Any] = {"to": "prefill-0", "prefill": None}


def helping(**changes: Any) -> RoleCluster:
    return start_roles(**{"is_adaptive": True, "slo_tpot_s": 0.5, "chunk_tokens": 64} | changes)


def sizes_of_next_step(cluster: RoleCluster) -> list[int]:
    parts = cluster.workers["prefill-0"].parts
    assert parts is not None
    return [len(part.row.token_ids) for part in parts]


def test_it_writes_answers_of_its_own_and_reads_for_others_in_the_same_steps() -> None:
    cluster = helping()
    own = cluster.submit(LONG[:40], 60, **HOME)
    cluster.deliver_all()
    cluster.step("prefill-0")
    granted = cluster.submit(LONG[100:160], 10)
    cluster.deliver_all()
    assert cluster.begin("prefill-0")
    assert sizes_of_next_step(cluster) == [1, 60]
    cluster.run()
    cluster.check_answers()
    cluster.check_idle()
    assert len(own.answer) == 60
    assert len(granted.answer) == 10


def test_prompts_are_read_in_the_order_in_which_they_came_whoever_writes() -> None:
    cluster = helping(chunk_tokens=256)
    for number, home in enumerate([HOME, {}, HOME, {}]):
        cluster.submit(LONG[number * 40 : number * 40 + 30 + number], 4, **home)
        cluster.deliver_all()
        cluster.clock.sleep(0.01)
    assert cluster.begin("prefill-0")
    # One step has them all; own prompts come first in it, each queue in its order.
    assert sizes_of_next_step(cluster) == [30, 32, 31, 33]
    cluster.run()
    cluster.check_answers()


def test_the_first_to_come_is_cut_last() -> None:
    cluster = helping(chunk_tokens=64)
    cluster.submit(LONG[:50], 4)
    cluster.deliver_all()
    cluster.clock.sleep(0.01)
    cluster.submit(LONG[100:150], 4, **HOME)
    cluster.deliver_all()
    assert cluster.begin("prefill-0")
    assert sizes_of_next_step(cluster) == [14, 50], "the granted one was first and is read whole"
    cluster.run()
    cluster.check_answers()


def test_a_void_grant_costs_its_own_answers_nothing() -> None:
    cluster = helping(chunk_tokens=256)
    own = cluster.submit(LONG[:40], 8, **HOME)
    cluster.deliver_all()
    cluster.step("prefill-0")
    granted = cluster.submit(LONG[40:80], 8)
    cluster.deliver_all()
    worker = cluster.workers["prefill-0"]
    parts = worker.role.plan_step()
    assert len(parts) == 2
    table, epoch = parts[1].row.block_table, parts[1].epoch
    cluster.header.reserve(table, 2**50)  # taken away, as if the grant were of a former life
    with pytest.raises(BlockTableError) as raised:
        worker.memory.run_step(worker.engine, parts)
    worker.role.on_step_done(raised.value)
    cluster.header.reserve(table, epoch)
    cluster.run()
    cluster.check_answers()
    assert (len(own.answer), len(granted.answer)) == (8, 8)


def test_its_load_is_that_of_both_roles() -> None:
    cluster = helping(chunk_tokens=16)
    cluster.submit(LONG[:40], 8, **HOME)
    cluster.submit(LONG[40:100], 8)
    cluster.deliver_all()
    role = cluster.workers["prefill-0"].role
    assert isinstance(role, BothRoles)
    assert role.load().queued_prefill_tokens == 100
    assert role.load().queued_prefill_pairs == 40 * 41 / 2 + 60 * 61 / 2, "no token attends to the other prompt"
    cluster.run()
    assert role.load() == (0, 0, 0, 0)


def test_a_tight_pace_keeps_prompts_out_of_the_steps_of_answers_until_they_are_urgent() -> None:
    cluster = helping(slo_tpot_s=0.02, slo_ttft_s=1.0)  # a step takes 39 ms here: no chunk ever fits
    cluster.submit(LONG[:40], 300, **HOME)
    cluster.deliver_all()
    cluster.step("prefill-0")
    late = cluster.submit(LONG[100:160], 10)
    cluster.deliver_all()
    waited = 0
    while not late.tokens:
        assert cluster.begin("prefill-0")
        waited += sizes_of_next_step(cluster) == [1]
        cluster.end("prefill-0")
        cluster.deliver_all()
    assert waited > 20
    cluster.run()
    cluster.check_answers()


def test_answers_that_do_not_fit_the_pace_wait_for_their_turn() -> None:
    cluster = helping(slo_tpot_s=0.06, slo_ttft_s=1000.0, num_blocks=80)
    heards = [cluster.submit(LONG[number : number + 40], 40) for number in range(8)]
    cluster.deliver_all()
    decode, most_placed = cluster.workers["decode-0"].decode, 0
    for _ in range(2_000):
        cluster.deliver_all()
        if not [name for name in cluster.workers if cluster.step(name)]:
            break
        most_placed = max(most_placed, len(decode.roster.placed))
    assert 2 <= most_placed < 8
    cluster.run()
    cluster.check_answers()
    assert all(len(heard.answer) == 40 for heard in heards)


def test_an_answer_that_its_blocks_could_never_hold_is_refused_for_another_worker() -> None:
    cluster = helping(num_blocks=4, max_model_len=1_000)
    ending, endless = cluster.submit(LONG[:40], 89, **HOME), cluster.submit(LONG[:40], 90, **HOME)
    cluster.run()
    assert len(ending.answer) == 89
    (end,) = endless.ends
    assert isinstance(end, Failed)
    assert end.kind is FailureKind.REFUSED


def test_a_pace_that_one_answer_alone_misses_is_none() -> None:
    cluster = helping(slo_tpot_s=0.02, slo_ttft_s=1000.0, num_blocks=80)
    for number in range(8):
        cluster.submit(LONG[number : number + 40], 60)
    cluster.deliver_all()
    assert len(cluster.workers["decode-0"].decode.roster.placed) == 8
    cluster.run()
    cluster.check_answers()


def test_who_has_waited_for_long_waits_no_longer_for_the_pace_of_others() -> None:
    cluster = helping(slo_tpot_s=0.06, slo_ttft_s=1.0, num_blocks=80)
    for number in range(8):
        cluster.submit(LONG[number : number + 40], 60)
    cluster.deliver_all()
    decode = cluster.workers["decode-0"].decode
    assert len(decode.roster.placed) < 8
    cluster.clock.sleep(4.1)
    decode.admit()
    assert len(decode.roster.placed) == 8
    cluster.run()
    cluster.check_answers()
