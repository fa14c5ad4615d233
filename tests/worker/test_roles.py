"""Roles at work: the same answers by every path, blocks that are never free too early nor kept too long."""

import msgspec
import pytest
from tests.worker.role_cluster import Heard, RoleCluster, start_roles

from diptych.core.errors import BlockTableError, EngineError
from diptych.core.events import FinishReason, Lifecycle
from diptych.core.ids import FIRST_ROUTER, BlockId
from diptych.core.messages import Aborted, Failed, FailureKind, Filled, Grant, GrantEnded, Revoke, Tokens
from diptych.core.request import SampledToken
from diptych.engine.modeled_engine import expected_tokens
from diptych.kv.header import request_key

VOCAB_SIZE = 1000
LONG = [7 * i % 900 for i in range(200)]
SHORT = [5, 6, 7]


def greedy(heard: Heard, num_tokens: int = 16) -> list[int]:
    return expected_tokens(heard.request.prompt_token_ids, num_tokens, VOCAB_SIZE)


def finish(cluster: RoleCluster) -> None:
    cluster.run()
    cluster.check_answers()
    cluster.check_idle()


# The same answer by every path


@pytest.mark.parametrize("chunk_tokens", [16, 33, 256])
@pytest.mark.parametrize("prefill", ["prefill-0", None])
@pytest.mark.parametrize("num_prompt_tokens", [1, 2, 31, 32, 33, 64, 65, 200])
def test_the_path_does_not_show_in_the_answer(chunk_tokens: int, prefill: str | None, num_prompt_tokens: int) -> None:
    cluster = start_roles(chunk_tokens=chunk_tokens)
    heard = cluster.submit(LONG[:num_prompt_tokens], 40, prefill=prefill)

    finish(cluster)

    assert heard.answer == greedy(heard, 40)
    assert heard.finished.reason is FinishReason.LENGTH
    was_granted = Lifecycle.GRANTED in heard.finished.timeline
    assert was_granted == (prefill is not None and num_prompt_tokens > cluster.settings.local_prefill_max_tokens)


def test_a_mixed_worker_reads_prompts_while_it_answers() -> None:
    cluster = start_roles(num_prefill=0, num_decode=0, num_mixed=1)
    first = cluster.submit(LONG[:90], 40, to="mixed-0", prefill=None)
    while not first.tokens:
        cluster.deliver_all()
        cluster.step("mixed-0")
    second = cluster.submit(LONG[3:150], 40, to="mixed-0", prefill=None)
    num_before = len(first.tokens)
    while not second.tokens:
        cluster.deliver_all()
        cluster.step("mixed-0")

    assert len(first.tokens) - num_before >= 147 // cluster.settings.decode_chunk_tokens, "the answer was stalled"
    finish(cluster)
    assert (first.answer, second.answer) == (greedy(first, 40), greedy(second, 40))


def test_a_prefix_hit_computes_only_the_rest() -> None:
    cluster = start_roles()
    cluster.submit(LONG[:100])
    cluster.run()
    again = cluster.submit([*LONG[:96], 1, 2, 3])
    finish(cluster)

    assert again.finished.num_cached_tokens == 96
    assert Lifecycle.GRANTED not in again.finished.timeline, "three uncached tokens are read by the decode worker"
    assert again.answer == greedy(again)


def test_two_requests_with_one_prompt_at_once() -> None:
    cluster = start_roles()
    twins = [cluster.submit(LONG[:128]) for _ in range(2)]
    finish(cluster)

    assert [twin.answer for twin in twins] == [greedy(twins[0])] * 2


def test_blocks_that_run_out_cost_time_and_no_token() -> None:
    cluster = start_roles(num_blocks=8)
    heards = [cluster.submit([*LONG[:40], number], 70) for number in range(4)]
    finish(cluster)

    assert sum(heard.finished.num_preemptions for heard in heards) > 0
    assert heards[0].finished.num_preemptions == 0, "the first to arrive is never the victim"
    assert [heard.answer for heard in heards] == [greedy(heard, 70) for heard in heards]


def test_preempted_requests_keep_their_order() -> None:
    cluster = start_roles(num_blocks=6, num_prefill=0)
    heards = [cluster.submit([*LONG[:30], number], 60, prefill=None) for number in range(5)]
    finish(cluster)

    ends_s = [heard.finished.timeline[Lifecycle.FINISHED] for heard in heards]
    assert sum(heard.finished.num_preemptions for heard in heards) > 0
    assert ends_s == sorted(ends_s)


def test_a_victim_waits_behind_one_that_came_earlier() -> None:
    cluster = start_roles(num_blocks=7)
    _, second = cluster.submit(LONG[:60], 120), cluster.submit(LONG[60:120], 120)
    while len(second.tokens) < 3:
        cluster.deliver_all()
        cluster.step("prefill-0")
        cluster.step("decode-0")
    third = cluster.submit(LONG[120:140], 120)
    cluster.deliver("router", "decode-0")
    decode = cluster.workers["decode-0"].decode
    while not decode.load().num_waiting:  # the third is granted and cannot be the victim
        cluster.step("decode-0")
    while decode.load().num_waiting < 2:  # now it can
        cluster.deliver_all()
        cluster.step("prefill-0")
        cluster.step("decode-0")

    assert [waiting.request_id for waiting in decode.roster.waiting] == [
        second.request.request_id,
        third.request.request_id,
    ]
    finish(cluster)


def test_sampled_answers_do_not_depend_on_the_path_either() -> None:
    cluster = start_roles(num_blocks=9)
    for number in range(4):
        cluster.submit([*LONG[:40], number], 70, temperature=1.5, seed=number, top_p=0.95)
    finish(cluster)  # which compares each with the answer of one engine alone

    assert sum(heard.finished.num_preemptions for heard in cluster.heard.values()) > 0


# How answers end


@pytest.mark.parametrize("ignore_eos", [False, True])
@pytest.mark.parametrize("index_of_eos", [0, 5])
def test_an_answer_ends_at_an_end_of_sequence_token(ignore_eos: bool, index_of_eos: int) -> None:
    eos = expected_tokens(LONG[:50], 16, VOCAB_SIZE)[index_of_eos]
    cluster = start_roles(eos_token_ids=frozenset({eos}))
    heard = cluster.submit(LONG[:50], ignore_eos=ignore_eos)
    finish(cluster)

    assert heard.finished.reason is (FinishReason.LENGTH if ignore_eos else FinishReason.STOP)
    assert heard.answer == greedy(heard, 16 if ignore_eos else index_of_eos + 1)


def test_an_answer_of_one_token_never_enters_a_decode_step() -> None:
    cluster = start_roles()
    heard = cluster.submit(LONG[:50], 1)
    finish(cluster)

    assert heard.answer == greedy(heard, 1)
    assert Lifecycle.JOINED not in heard.finished.timeline


def test_an_answer_ends_where_the_context_does() -> None:
    cluster = start_roles(num_blocks=3)
    heard = cluster.submit(LONG[:80], 1000)
    finish(cluster)

    assert heard.finished.num_output_tokens == 96 - 80
    assert heard.finished.reason is FinishReason.LENGTH


def test_a_prompt_that_fills_the_context_is_refused() -> None:
    cluster = start_roles(num_blocks=3)
    heard = cluster.submit(LONG[:96])
    cluster.run()

    (end,) = heard.ends
    assert isinstance(end, Failed)
    assert end.kind is FailureKind.INVALID
    cluster.check_idle()


def test_a_full_queue_refuses() -> None:
    cluster = start_roles(max_num_seqs=1)
    heards = [cluster.submit(SHORT) for _ in range(20)]
    cluster.deliver_all()

    # 1 has a place and 16 wait.
    assert [heard.ends[0].kind for heard in heards[17:] if isinstance(heard.ends[0], Failed)] == [
        FailureKind.REFUSED
    ] * 3
    assert not any(heard.ends for heard in heards[:17])
    cluster.run()
    assert [heard.answer for heard in heards[:17]] == [greedy(heards[0])] * 17


@pytest.mark.parametrize("phase", ["waiting", "granted", "in step", "decoding"])
def test_a_deadline_ends_a_request_wherever_it_is(phase: str) -> None:
    cluster = start_roles(max_num_seqs=1)
    other = cluster.submit(LONG[:50], 30) if phase == "waiting" else None
    heard = cluster.submit(LONG[:100], 200, timeout_s=50)
    bring_to(cluster, heard, phase)

    cluster.clock.sleep(51)
    finish(cluster)

    (end,) = heard.ends
    assert isinstance(end, Failed)
    assert end.kind is FailureKind.TIMEOUT
    assert other is None or other.answer == greedy(other, 30)


def bring_to(cluster: RoleCluster, heard: Heard, phase: str) -> None:
    """Go on until `heard` is in `phase`; the step of `in step` is the prefill worker's."""
    cluster.deliver("router", "decode-0")
    if phase == "waiting":
        cluster.deliver("router", "decode-0")
        return
    assert cluster.workers["decode-0"].decode.load().num_running == 1
    if phase == "granted":
        return
    cluster.deliver("decode-0", "prefill-0")
    assert cluster.begin("prefill-0")
    if phase == "in step":
        return
    while len(heard.tokens) < 3:
        if cluster.workers["prefill-0"].parts is not None:
            cluster.end("prefill-0")
        cluster.deliver_all()
        cluster.step("prefill-0")
        cluster.step("decode-0")


# Aborts: blocks are free once their writer has said so, and never earlier


@pytest.mark.parametrize("phase", ["waiting", "granted", "in step", "decoding"])
def test_an_abort_frees_everything(phase: str) -> None:
    cluster = start_roles(max_num_seqs=1)
    if phase == "waiting":
        cluster.submit(LONG[:50], 30)
    heard = cluster.submit(LONG[:100], 200)
    bring_to(cluster, heard, phase)
    cache = cluster.workers["decode-0"].decode.blocks.cache
    num_before = cache.num_available_blocks

    cluster.abort(heard)
    cluster.deliver("router", "decode-0")

    assert isinstance(heard.ends[0], Aborted)
    if phase == "decoding":
        assert cache.num_available_blocks == cache.num_blocks
    else:
        assert cache.num_available_blocks == num_before, "the prefill worker may still be writing"
    finish(cluster)


@pytest.mark.parametrize("last_word", ["GrantEnded", "Filled", "PeerGone"])
def test_an_aborted_grant_keeps_its_blocks_until_its_writer_is_done(last_word: str) -> None:
    cluster = start_roles(num_blocks=4, chunk_tokens=256)
    heard = cluster.submit(LONG[:100], 20)
    bring_to(cluster, heard, "in step")
    if last_word == "Filled":
        cluster.end("prefill-0")  # on its way before the abort
    cluster.abort(heard)
    other = cluster.submit(LONG[50:150], 20)  # wants the same four blocks
    cluster.deliver("router", "decode-0")
    cluster.deliver("router", "decode-0")
    cache = cluster.workers["decode-0"].decode.blocks.cache
    assert cache.num_available_blocks == 0
    assert not cluster.begin("decode-0")

    if last_word == "PeerGone":
        cluster.kill("prefill-0", has_written=True)
        cluster.deliver("router", "decode-0")
    else:
        cluster.deliver("decode-0", "prefill-0")  # Revoke
        if last_word == "GrantEnded":
            assert ("prefill-0", "decode-0") not in cluster.letters.queues, "said so while it was still writing"
            cluster.end("prefill-0")
        while cluster.letters.queues[("prefill-0", "decode-0")]:
            cluster.deliver("prefill-0", "decode-0")

    assert cluster.workers["decode-0"].decode.load().num_running == 1, "the next request has the blocks now"
    finish(cluster)
    assert other.answer == greedy(other, 20)


def test_an_abort_during_a_decode_step_waits_for_its_end() -> None:
    cluster = start_roles()
    heard, other = cluster.submit(LONG[:100], 50), cluster.submit(LONG[9:99], 50)
    bring_to(cluster, heard, "decoding")
    while len(other.tokens) < 3:
        cluster.deliver_all()
        cluster.step("prefill-0")
        cluster.step("decode-0")
    assert cluster.begin("decode-0")
    cache = cluster.workers["decode-0"].decode.blocks.cache
    num_before = cache.num_available_blocks
    for _ in range(2):  # a doubled abort is one
        cluster.abort(heard)
        cluster.deliver("router", "decode-0")
    assert not heard.ends
    assert cache.num_available_blocks == num_before

    cluster.end("decode-0")

    assert isinstance(heard.ends[0], Aborted)
    assert heard.ends[0].num_output_tokens == len(heard.tokens)
    assert cache.num_available_blocks > num_before
    finish(cluster)
    assert other.answer == greedy(other, 50)


def test_an_abort_during_its_last_step_comes_too_late() -> None:
    cluster = start_roles()
    heard = cluster.submit(SHORT, 2)
    cluster.deliver_all()
    cluster.step("decode-0")
    cluster.begin("decode-0")
    cluster.abort(heard)
    cluster.deliver_all()
    cluster.end("decode-0")

    assert heard.answer == greedy(heard, 2)
    finish(cluster)


def test_an_abort_of_an_unknown_request_does_nothing() -> None:
    cluster = start_roles()
    heard = cluster.submit(SHORT)
    cluster.run()
    cluster.abort(heard)
    finish(cluster)


# Prefill workers that die, give up, or say things twice


@pytest.mark.parametrize("num_chunks", [0, 1])
@pytest.mark.parametrize("has_written", [False, True])
def test_a_dead_prefill_worker_costs_time_and_no_token(num_chunks: int, has_written: bool) -> None:
    cluster = start_roles()
    heard = cluster.submit(LONG)
    cluster.deliver("router", "decode-0")
    cluster.deliver("decode-0", "prefill-0")
    for _ in range(num_chunks):
        cluster.step("prefill-0")
    cluster.begin("prefill-0")
    cluster.kill("prefill-0", has_written=has_written)
    finish(cluster)

    assert heard.answer == greedy(heard)
    later = cluster.submit(LONG[5:])
    finish(cluster)
    assert Lifecycle.GRANTED not in later.finished.timeline, "a grant to a worker that is known to be dead"


def test_a_first_token_that_dies_with_its_prefill_worker_is_told_all_the_same() -> None:
    cluster = start_roles()
    heard = cluster.submit(LONG[:50])
    cluster.deliver("router", "decode-0")
    cluster.deliver("decode-0", "prefill-0")
    cluster.step("prefill-0")
    cluster.deliver("prefill-0", "decode-0")  # Filled arrives ...
    cluster.kill("prefill-0")  # ... and what was on its way to the router does not

    finish(cluster)

    assert heard.answer == greedy(heard)


def test_words_of_the_dead_change_nothing() -> None:
    cluster = start_roles()
    heard = cluster.submit(LONG[:50])
    cluster.deliver("router", "decode-0")
    cluster.deliver("decode-0", "prefill-0")
    cluster.step("prefill-0")
    cluster.kill("prefill-0", num_letters_sent=1)
    cluster.deliver("router", "decode-0")  # PeerGone overtakes Filled

    cluster.begin("decode-0")
    cluster.deliver("prefill-0", "decode-0")
    finish(cluster)

    assert heard.answer == greedy(heard)


@pytest.mark.parametrize("is_aborted", [False, True])
def test_stale_and_doubled_words_of_a_writer_are_dropped(is_aborted: bool) -> None:
    cluster = start_roles(chunk_tokens=256)
    heard = cluster.submit(LONG[:100])
    cluster.deliver("router", "decode-0")
    grant = msgspec.msgpack.decode(cluster.letters.queues[("decode-0", "prefill-0")][0], type=Grant)
    cluster.deliver("decode-0", "prefill-0")
    cluster.step("prefill-0")
    filled = msgspec.msgpack.decode(cluster.letters.queues[("prefill-0", "decode-0")][0], type=Filled)
    if is_aborted:
        cluster.abort(heard)
        cluster.deliver("router", "decode-0")
    stale = [
        msgspec.structs.replace(filled, epoch=grant.epoch - 1, first_tokens=[SampledToken(1)]),
        GrantEnded(request_id=heard.request.request_id, epoch=grant.epoch - 1, reason="stale"),
    ]
    doubled = [filled, GrantEnded(request_id=heard.request.request_id, epoch=grant.epoch, reason="doubled")]
    for message in (*stale, filled, *doubled):
        cluster.letters.send("test", "decode-0", message)
        cluster.deliver("test", "decode-0")
        cluster.workers["decode-0"].decode.blocks.cache.check_invariants()
    finish(cluster)

    assert is_aborted or heard.answer == greedy(heard)


def test_a_prefill_worker_that_cannot_be_reached_is_done_without() -> None:
    cluster = start_roles()
    cluster.letters.unreachable.add("prefill-0")
    heard = cluster.submit(LONG)
    finish(cluster)

    assert heard.answer == greedy(heard)


def test_an_abort_that_the_prefill_worker_cannot_hear_keeps_the_blocks() -> None:
    cluster = start_roles()
    heard = cluster.submit(LONG)
    bring_to(cluster, heard, "in step")
    cluster.letters.unreachable.add("prefill-0")
    cluster.abort(heard)
    cluster.deliver("router", "decode-0")
    cache = cluster.workers["decode-0"].decode.blocks.cache
    assert cache.num_available_blocks < cache.num_blocks

    cluster.letters.unreachable.clear()
    cluster.kill("prefill-0")
    finish(cluster)


def test_a_failed_prefill_step_is_repeated_by_the_decode_worker() -> None:
    cluster = start_roles()
    heard = cluster.submit(LONG)
    bring_to(cluster, heard, "in step")
    cluster.end("prefill-0", EngineError("out of order"))
    finish(cluster)

    assert heard.answer == greedy(heard)


def test_a_failed_decode_step_fails_its_requests_alone() -> None:
    cluster = start_roles(max_num_seqs=2)
    heards = [cluster.submit(SHORT) for _ in range(3)]
    cluster.deliver_all()
    cluster.begin("decode-0")
    cluster.abort(heards[1])
    cluster.deliver_all()
    cluster.end("decode-0", EngineError("out of order"))

    for heard in heards[:2]:
        (end,) = heard.ends
        assert isinstance(end, Failed)
        assert (end.kind, end.message) == (FailureKind.ERROR, "out of order")
    cluster.run()
    assert heards[2].answer == greedy(heards[2])
    cluster.check_idle()


# The prefill role alone


def test_a_void_grant_is_given_back_and_the_others_go_on() -> None:
    cluster = start_roles(chunk_tokens=256)
    first, second = cluster.submit(LONG[:40]), cluster.submit(LONG[40:80])
    cluster.deliver_all()
    worker = cluster.workers["prefill-0"]
    parts = worker.role.plan_step()
    cluster.header.reserve(parts[0].row.block_table, 2**50)  # taken away, as if the grant were of a former life
    with pytest.raises(BlockTableError) as raised:
        worker.memory.run_step(worker.engine, parts)
    worker.role.on_step_done(raised.value)

    ended = msgspec.msgpack.decode(cluster.letters.queues[("prefill-0", "decode-0")][0], type=GrantEnded)
    assert ended.epoch == parts[0].epoch
    cluster.header.reserve(parts[0].row.block_table, parts[0].epoch)
    finish(cluster)
    assert [first.answer, second.answer] == [greedy(first), greedy(second)]


def test_a_doubled_grant_does_not_stop_the_prefill_worker() -> None:
    cluster = start_roles(chunk_tokens=256)
    heard = cluster.submit(LONG[:40])
    cluster.deliver("router", "decode-0")
    grant = msgspec.msgpack.decode(cluster.letters.queues[("decode-0", "prefill-0")][0], type=Grant)
    cluster.deliver_all()
    worker = cluster.workers["prefill-0"]
    worker.role.on_message(grant)  # past the inspector, who would not have let it through
    with pytest.raises(BlockTableError, match="in the same step") as raised:
        worker.memory.run_step(worker.engine, worker.role.plan_step())
    worker.role.on_step_done(raised.value)

    finish(cluster)
    assert heard.answer == greedy(heard)


def test_a_revoke_of_an_unknown_grant_is_answered() -> None:
    cluster = start_roles()
    heard = cluster.submit(LONG[:40])
    revoke = Revoke(request_id=heard.request.request_id, epoch=5, decode=cluster.address("decode-0"))
    cluster.letters.send("test", "prefill-0", revoke)
    cluster.deliver("test", "prefill-0")

    ended = msgspec.msgpack.decode(cluster.letters.take(("prefill-0", "decode-0")), type=GrantEnded)
    assert ended.epoch == 5


@pytest.mark.parametrize("is_in_step", [False, True])
def test_grants_of_a_dead_decode_worker_are_forgotten(is_in_step: bool) -> None:
    cluster = start_roles(num_decode=2, chunk_tokens=256)
    cluster.submit(LONG[:100], to="decode-0")
    kept = cluster.submit(LONG[50:150], to="decode-1")
    cluster.deliver_all()
    if is_in_step:
        cluster.begin("prefill-0")
    cluster.kill("decode-0")
    cluster.run()

    assert kept.answer == greedy(kept)
    prefill = cluster.workers["prefill-0"].role
    assert prefill.load().queued_prefill_tokens == 0
    if not is_in_step:
        assert not cluster.letters.queues.get(("prefill-0", "decode-0")), "it wrote into blocks of a dead worker"


def test_a_prefill_worker_reads_several_short_prompts_at_once() -> None:
    cluster = start_roles(chunk_tokens=100)
    heards = [cluster.submit(LONG[begin : begin + 30]) for begin in (0, 30, 60)]
    cluster.deliver_all()
    parts = cluster.workers["prefill-0"].role.plan_step()

    assert [len(part.row.token_ids) for part in parts] == [30, 30, 30]
    assert [part.row.num_logits for part in parts] == [1, 1, 1]
    finish(cluster)
    assert [heard.answer for heard in heards] == [greedy(heard) for heard in heards]


def test_a_prompt_that_is_begun_is_told_at_once_and_once() -> None:
    cluster = start_roles(num_prefill=0, num_decode=0, num_mixed=1, decode_chunk_tokens=16)
    heard = cluster.submit(LONG[:50], 4, to="mixed-0", prefill=None)
    told: list[str] = []
    while not heard.tokens:  # several steps
        cluster.deliver_all()
        worker = cluster.workers["mixed-0"]
        worker.begin()
        told += [one.request_id for one in worker.decode.report.of(FIRST_ROUTER).begun]
        cluster.end("mixed-0")
    finish(cluster)
    assert told == [heard.request.request_id]


def test_first_tokens_reach_the_router_before_the_decode_worker_goes_on() -> None:
    cluster = start_roles()
    heard = cluster.submit(LONG[:50])
    bring_to(cluster, heard, "in step")
    cluster.end("prefill-0")

    letters = cluster.letters.queues[("prefill-0", "router")]
    begun, told = (msgspec.msgpack.decode(letter, type=Tokens) for letter in letters)
    assert [one.request_id for one in begun.begun] == [heard.request.request_id]
    assert not begun.tokens
    assert [(event.index, event.token_id) for event in told.tokens] == [(0, greedy(heard, 1)[0])]
    assert not told.finished, "only the decode worker ends a request"


# What a successor finds


def test_the_header_names_a_running_requests_blocks_in_order() -> None:
    cluster = start_roles()
    cluster.submit(LONG[:70], 1)  # leaves two blocks for the next one
    cluster.run()
    heard = cluster.submit(LONG[:100], 60)
    while len(heard.tokens) < 40:
        cluster.deliver_all()
        cluster.step("prefill-0")
        cluster.step("decode-0")

    # 100 prompt tokens and all of the answer but its newest one are in blocks: 2 shared, 3 of its own.
    key = request_key(heard.request.request_id, heard.request.arrived_s, 0)
    records = cluster.header.committed([BlockId(number) for number in range(cluster.header.num_blocks)])
    own = sorted((record for record in records if record and record.request_key == key), key=lambda r: r.block_index)
    assert [(record.block_index, record.num_tokens) for record in own] == [(2, 32), (3, 32), (4, 139 - 128)]
    assert len({record.epoch for record in own}) == 1
    hashes = cluster.hasher.hash_blocks(heard.request.prompt_token_ids + [heard.tokens[i] for i in range(40)])
    assert [record.block_hash for record in own] == [hashes[2], hashes[3], None]
    cluster.check_records()
    finish(cluster)
