"""Grants that are out: closed once, by the right word."""

import pytest

from diptych.core.ids import BlockId, RequestId, WorkerId
from diptych.core.messages import PeerAddress
from diptych.core.request import Request, SamplingParams
from diptych.worker.handoff import Handoffs
from diptych.worker.sampling.chooser import TokenChooser
from diptych.worker.sequence import Sequence

WRITER = PeerAddress(WorkerId("prefill-0"), "endpoint", 3)
OTHER = PeerAddress(WorkerId("prefill-1"), "endpoint", 4)


def sequence(epoch: int) -> Sequence:
    request = Request(
        request_id=RequestId(f"r{epoch}"),
        prompt_token_ids=[1, 2, 3],
        sampling=SamplingParams(max_tokens=1),
        deadline_s=1.0,
        arrived_s=0.0,
    )
    chooser = TokenChooser(request.sampling, choice=0, prompt_token_ids=[1, 2, 3], eos_token_ids=[], vocab_size=10)
    table = [BlockId(epoch), BlockId(epoch + 1)]
    return Sequence(request, 0, WRITER, 0, [1, 2, 3], [], chooser, block_table=table, epoch=epoch)


def test_a_grant_is_settled_once_and_by_its_own_epoch() -> None:
    handoffs, own = Handoffs(), sequence(10)
    handoffs.open(own, WRITER, 0.0)

    assert handoffs.settle(9) is None
    settled = handoffs.settle(10)
    assert settled is not None
    assert settled.sequence is own
    assert settled.abandoned_blocks is None
    assert handoffs.settle(10) is None
    assert len(handoffs) == 0


def test_an_abandoned_grant_keeps_the_blocks_that_its_sequence_no_longer_has() -> None:
    handoffs, own = Handoffs(), sequence(10)
    handoffs.open(own, WRITER, 0.0)

    assert handoffs.abandon(own).writer is WRITER
    assert own.block_table == []
    assert handoffs.num_abandoned_blocks == 2
    settled = handoffs.settle(10)
    assert settled is not None
    assert settled.abandoned_blocks == [10, 11]
    assert handoffs.num_abandoned_blocks == 0


@pytest.mark.parametrize(("incarnation", "num_settled"), [(2, 0), (3, 2), (4, 2)])
def test_a_death_closes_the_grants_of_that_life_and_former_ones(incarnation: int, num_settled: int) -> None:
    handoffs = Handoffs()
    for epoch, writer in ((10, WRITER), (20, OTHER), (30, WRITER)):
        handoffs.open(sequence(epoch), writer, 0.0)

    settled = handoffs.settle_all_of(WRITER.worker_id, incarnation)

    assert [handoff.epoch for handoff in settled] == [10, 30][:num_settled]
    assert len(handoffs) == 3 - num_settled
    assert handoffs.settle(20) is not None


def test_one_epoch_is_never_granted_twice() -> None:
    handoffs, own = Handoffs(), sequence(10)
    handoffs.open(own, WRITER, 0.0)

    with pytest.raises(AssertionError):
        handoffs.open(own, OTHER, 0.0)


def test_a_writer_is_asked_for_what_is_late_and_then_it_is_mute() -> None:
    handoffs = Handoffs()
    handoffs.open(sequence(10), WRITER, 0.0)
    handoffs.open(sequence(20), OTHER, 2.0)

    def unheard(now_s: float) -> tuple[list[int], set[PeerAddress]]:
        to_ask, mute = handoffs.take_unheard(now_s, 5.0)
        return [handoff.epoch for handoff in to_ask], {handoff.writer for handoff in mute}

    assert unheard(4.9) == ([], set())
    assert unheard(5.0) == ([10], set())
    assert unheard(5.1) == ([], set()), "once is enough"
    handoffs.on_held(10, 5.2)
    handoffs.on_held(99, 5.2)
    assert unheard(7.0) == ([20], set())
    assert unheard(10.1) == ([], set()), "what was held a moment ago is not late"
    assert unheard(12.0) == ([10, 20], {OTHER})
    assert unheard(17.0) == ([10, 20], {WRITER, OTHER}), "said again as long as nothing changes"
    handoffs.settle(20)
    handoffs.abandon(sequence(10))
    assert unheard(22.0) == ([10], {WRITER}), "abandoned blocks are waited for, too"
