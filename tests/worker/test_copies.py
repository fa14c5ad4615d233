"""A prefix is copied from another worker's cache; whatever goes wrong, the rest is computed and answers are right."""

import pytest
from tests.worker.role_cluster import Heard, RoleCluster, start_roles

from diptych.core.ids import BlockId
from diptych.core.messages import Returned
from diptych.worker.copies import ANSWER_TIMEOUT_S, COPY_TIMEOUT_S
from diptych.worker.loans import MOST_LOAN_S
from diptych.worker.sequence import SequenceState

HOT = [7 * number % 900 for number in range(320)]
BLOCK_BYTES = 256


def start(**changes: object) -> RoleCluster:
    """Return a cluster whose decode-0 has ten blocks in its cache, and has answered to another prompt in between."""
    cluster = start_roles(num_decode=2, **changes)
    cluster.submit([*HOT, 1, 2, 3], 4, to="decode-0")
    cluster.run()
    return cluster


def ask(cluster: RoleCluster, *rest: int, prompt: list[int] = HOT, max_tokens: int = 8) -> Heard:
    """Ask decode-1 for what decode-0 knows."""
    return cluster.submit([*prompt, *(rest or (5, 6, 7))], max_tokens, to="decode-1", copy_from="decode-0")


def lend(cluster: RoleCluster) -> None:
    """Bring the request, the wish to borrow and the loan on their ways."""
    cluster.deliver("router", "decode-1")
    cluster.deliver("decode-1", "decode-0")
    cluster.deliver("decode-0", "decode-1")


def finish(cluster: RoleCluster) -> None:
    cluster.run()
    cluster.check_answers()
    cluster.check_idle()


def test_a_prefix_is_copied_and_the_rest_computed_by_the_reader() -> None:
    cluster = start()
    heard = ask(cluster)
    num_before = cluster.workers["prefill-0"].num_steps
    finish(cluster)
    assert heard.finished.num_cached_tokens == 320
    late = cluster.submit([*HOT, 8, 8, 8], to="decode-1")
    finish(cluster)
    assert late.finished.num_cached_tokens == 320, "what was copied is cached like any other block"
    assert cluster.workers["prefill-0"].num_steps == num_before, "so little is read by the owner"


def test_the_rest_of_the_prompt_is_handed_over_after_the_copy() -> None:
    cluster = start()
    heard = ask(cluster, *range(100, 180))
    lend(cluster)
    assert not cluster.letters.queues.get(("decode-1", "prefill-0")), "nothing is granted before"
    cluster.copy("decode-1")
    assert cluster.letters.queues["decode-1", "prefill-0"]
    finish(cluster)
    assert heard.finished.num_cached_tokens == 320


@pytest.mark.parametrize("most_bytes", [1, 100, 256, 300, 1000])
def test_slices_end_anywhere(most_bytes: int) -> None:
    cluster = start()
    heard = ask(cluster)
    lend(cluster)
    num_slices = 0
    while cluster.copy("decode-1", most_bytes):
        num_slices += 1
    assert num_slices == -(-10 * BLOCK_BYTES // most_bytes)
    finish(cluster)
    assert heard.finished.num_cached_tokens == 320


@pytest.mark.parametrize("num_pieces", [0, 1, 3])
def test_a_slice_ends_when_it_is_told_to_and_gets_somewhere(num_pieces: int) -> None:
    cluster = start()
    heard = ask(cluster)
    lend(cluster)
    answers = iter([True] * max(num_pieces - 1, 0))
    decode = cluster.workers["decode-1"].decode
    assert not decode.copy(10 * BLOCK_BYTES, lambda: next(answers, False))
    copy = decode.copies.get(heard_epoch(cluster))
    assert copy is not None
    assert copy.num_bytes == max(num_pieces, 1) * BLOCK_BYTES, "a piece is no longer than a block"
    finish(cluster)
    assert heard.finished.num_cached_tokens == 320


def test_a_slice_that_has_to_end_begins_no_other_copy() -> None:
    cluster = start(num_blocks=80)
    both = [ask(cluster, number, 1, 2) for number in (1, 2)]
    lend(cluster)
    lend(cluster)
    copies = cluster.workers["decode-1"].decode.copies
    assert len(copies.advance(100 * BLOCK_BYTES, lambda: False)) == 0
    assert sum(copy.num_bytes for copy in copies._by_epoch.values()) == BLOCK_BYTES
    finish(cluster)
    assert [heard.finished.num_cached_tokens for heard in both] == [320, 320]


def test_only_what_is_missing_is_asked_for() -> None:
    cluster = start()
    cluster.submit([*HOT[:96], 1, 2, 3], to="decode-1")
    cluster.run()
    heard = ask(cluster)
    lend(cluster)
    assert cluster.workers["decode-0"].decode.loans.num_blocks == 10, "who uses a block uses all before it"
    cluster.copy("decode-1", 7 * BLOCK_BYTES)
    assert not cluster.copy("decode-1"), "seven are copied"
    finish(cluster)
    assert heard.finished.num_cached_tokens == 320


@pytest.mark.parametrize(("num_tokens", "num_cached"), [(320, 288), (321, 288), (322, 320)])
def test_a_copy_leaves_at_least_two_tokens_to_compute(num_tokens: int, num_cached: int) -> None:
    cluster = start()
    heard = ask(cluster, 5, 6, prompt=HOT) if num_tokens == 322 else None
    heard = heard or cluster.submit([*HOT, 5][:num_tokens], 8, to="decode-1", copy_from="decode-0")
    finish(cluster)
    assert heard.finished.num_cached_tokens == num_cached


def test_a_lender_that_has_lost_the_blocks_lends_what_is_left() -> None:
    cluster = start(num_blocks=24)
    for number in range(3):
        cluster.submit([(11 * position + number) % 900 for position in range(400)], 2, to="decode-0")
        cluster.run()
    heard = ask(cluster)
    finish(cluster)
    assert heard.finished.num_cached_tokens < 192, "a quarter of 24 blocks would have been lent"


def test_a_quarter_of_the_blocks_is_lent_at_most() -> None:
    cluster = start(num_blocks=16)
    heard = ask(cluster)
    lend(cluster)
    assert cluster.workers["decode-0"].decode.loans.num_blocks == 4
    finish(cluster)
    assert heard.finished.num_cached_tokens == 128


def test_lent_blocks_are_not_evicted() -> None:
    cluster = start()
    heard = ask(cluster)
    lend(cluster)
    cluster.copy("decode-1", 2 * BLOCK_BYTES)
    cache = cluster.workers["decode-0"].decode.blocks.cache
    assert cache.num_available_blocks == 30
    taken = cache.try_allocate(30)
    assert taken is not None
    cluster.header.reserve(taken, 2**50)
    cache.release(taken)
    finish(cluster)
    assert heard.finished.num_cached_tokens == 320


@pytest.mark.parametrize("most_bytes", [0, 5 * BLOCK_BYTES + 7])
def test_the_lenders_death_ends_the_copy_where_it_is(most_bytes: int) -> None:
    cluster = start()
    heard = ask(cluster)
    lend(cluster)
    cluster.copy("decode-1", most_bytes)
    cluster.kill("decode-0")
    cluster.deliver("router", "decode-1")
    finish(cluster)
    assert heard.finished.num_cached_tokens == most_bytes // BLOCK_BYTES * 32


def test_a_lender_that_is_dead_is_not_asked() -> None:
    cluster = start()
    cluster.kill("decode-0")
    cluster.deliver_all()
    heard = ask(cluster)
    finish(cluster)
    assert heard.finished.num_cached_tokens == 0


def test_the_borrowers_death_ends_its_loans() -> None:
    cluster = start()
    heard = ask(cluster)
    lend(cluster)
    cluster.copy("decode-1", 700)
    cluster.kill("decode-1")
    cluster.deliver("router", "decode-0")
    assert cluster.workers["decode-0"].decode.loans.num_blocks == 0
    cluster.migrate(heard, "decode-1", "decode-0", prefill="prefill-0")
    finish(cluster)


def test_a_wish_that_comes_after_its_senders_death_is_not_met() -> None:
    cluster = start()
    heard = ask(cluster)
    cluster.deliver("router", "decode-1")
    cluster.kill("decode-1", num_letters_sent=1)
    cluster.deliver("router", "decode-0")  # the news is faster
    cluster.deliver("decode-1", "decode-0")
    assert cluster.workers["decode-0"].decode.loans.num_blocks == 0
    cluster.migrate(heard, "decode-1", "decode-0", prefill="prefill-0")
    finish(cluster)


def test_blocks_that_were_written_anew_are_not_taken() -> None:
    cluster = start()
    heard = ask(cluster)
    lend(cluster)
    cluster.copy("decode-1", 3 * BLOCK_BYTES)
    lent = cluster.workers["decode-1"].decode.copies.get(heard_epoch(cluster))
    assert lent is not None
    assert lent.records is not None
    stolen = BlockId(lent.records[5].block_id)
    cluster.header.reserve([stolen], 2**60)
    cluster._blocks[stolen * BLOCK_BYTES : (stolen + 1) * BLOCK_BYTES] = b"\xee" * BLOCK_BYTES
    cluster.run()
    cluster.check_answers()
    assert heard.finished.num_cached_tokens == 160, "five blocks, and not the sixth"


def test_blocks_that_are_others_than_those_asked_for_are_not_copied() -> None:
    cluster = start()
    heard = ask(cluster)
    cluster.deliver("router", "decode-1")
    cluster.deliver("decode-1", "decode-0")
    cluster.header.reserve(cluster.header.owned_blocks("decode-0"), 2**60)  # type: ignore[arg-type]
    cluster.run()
    cluster.check_answers()
    assert heard.finished.num_cached_tokens == 0


def heard_epoch(cluster: RoleCluster) -> int:
    (sequence,) = cluster.workers["decode-1"].decode.roster.placed
    assert sequence.state is SequenceState.COPYING
    return sequence.epoch


def test_a_lender_that_does_not_answer_is_not_waited_for() -> None:
    cluster = start()
    heard = ask(cluster)
    cluster.deliver("router", "decode-1")
    assert not cluster.copy("decode-1")
    cluster.clock.sleep(ANSWER_TIMEOUT_S)
    assert cluster.copy("decode-1")
    finish(cluster)  # the loan comes, is returned, and is over
    assert heard.finished.num_cached_tokens == 0


def test_a_copy_that_takes_too_long_ends_with_what_there_is() -> None:
    cluster = start()
    heard = ask(cluster)
    lend(cluster)
    cluster.copy("decode-1", 4 * BLOCK_BYTES + 5)
    cluster.clock.sleep(COPY_TIMEOUT_S)
    finish(cluster)
    assert heard.finished.num_cached_tokens == 128


def test_nobody_keeps_blocks_for_one_that_is_hung() -> None:
    cluster = start()
    ask(cluster)
    lend(cluster)
    assert cluster.workers["decode-0"].decode.loans.num_blocks == 10
    cluster.clock.sleep(MOST_LOAN_S)
    cluster.copy("decode-0")
    assert cluster.workers["decode-0"].decode.loans.num_blocks == 0
    cluster.run()
    cluster.check_answers()


def test_an_abort_ends_the_copy_and_the_loan() -> None:
    cluster = start()
    heard = ask(cluster)
    lend(cluster)
    cluster.copy("decode-1", 700)
    cluster.abort(heard, "decode-1")
    cluster.deliver("router", "decode-1")
    assert not cluster.copy("decode-1")
    finish(cluster)


def test_whoever_loses_its_blocks_meanwhile_computes_all_later() -> None:
    cluster = start_roles(num_prefill=0, num_decode=2, num_blocks=8)
    cluster.submit([*HOT[:96], 1, 2, 3], 4, to="decode-0", prefill=None)
    cluster.submit([1, 2, 3], 250, to="decode-1", prefill=None)
    cluster.deliver_all()
    for _ in range(60):
        cluster.step("decode-0")
        cluster.step("decode-1")
    heard = cluster.submit([*HOT[:96], 4, 4, 4], 4, to="decode-1", prefill=None, copy_from="decode-0")
    lend(cluster)
    roster = cluster.workers["decode-1"].decode.roster
    assert roster.placed[-1].state is SequenceState.COPYING
    while not roster.waiting:
        assert cluster.step("decode-1")
    cluster.deliver("decode-1", "decode-0")
    assert cluster.workers["decode-0"].decode.loans.num_blocks == 0
    finish(cluster)
    assert heard.finished.num_preemptions == 1


def test_an_unreachable_lender_is_done_without() -> None:
    cluster = start()
    cluster.letters.unreachable.add("decode-0")
    heard = ask(cluster)
    finish(cluster)
    assert heard.finished.num_cached_tokens == 0


def test_an_unreachable_borrower_gets_nothing() -> None:
    cluster = start()
    ask(cluster)
    cluster.deliver("router", "decode-1")
    cluster.letters.unreachable.add("decode-1")
    cluster.deliver("decode-1", "decode-0")
    assert cluster.workers["decode-0"].decode.loans.num_blocks == 0
    cluster.letters.unreachable.clear()
    cluster.clock.sleep(ANSWER_TIMEOUT_S)
    finish(cluster)


def test_a_loan_is_returned_once_and_for_all() -> None:
    cluster = start()
    heard = ask(cluster)
    lend(cluster)
    cluster.copy("decode-1")
    cluster.deliver("decode-1", "decode-0")
    loans = cluster.workers["decode-0"].decode.loans
    assert loans.num_blocks == 0
    returned = Returned(request_id=heard.request.request_id, epoch=7, borrower=cluster.address("decode-1"))
    cluster.letters.send("decode-1", "decode-0", returned)
    finish(cluster)


def test_other_salts_borrow_nothing() -> None:
    cluster = start()
    heard = cluster.submit([*HOT, 5, 6, 7], 8, to="decode-1", copy_from="decode-0", cache_salt="mine")
    finish(cluster)
    assert heard.finished.num_cached_tokens == 0


def test_helpers_copy_too() -> None:
    cluster = start_roles(is_adaptive=True, slo_tpot_s=0.5)
    cluster.submit([*HOT, 1, 2, 3], 4, to="decode-0")
    cluster.run()
    heard = cluster.submit([*HOT, 5, 6, 7], 8, to="prefill-0", prefill=None, copy_from="decode-0")
    finish(cluster)
    assert heard.finished.num_cached_tokens == 320
