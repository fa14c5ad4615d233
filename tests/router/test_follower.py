"""A request after it was sent: retries, failures, aborts, deadlines, and workers that die."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import pytest

from diptych.core.errors import (
    InternalError,
    InvalidRequestError,
    RequestError,
    RequestTimeoutError,
    UnavailableError,
)
from diptych.core.events import FinishReason
from diptych.core.ids import RequestId, WorkerId
from diptych.core.messages import Abort, FailureKind, PeerGone, Started, TokenRun, Tokens, WorkerState
from diptych.core.request import TokenLogprobs
from diptych.core.service import EndOut, StartOut, TokensOut

if TYPE_CHECKING:
    from tests.router.conftest import Cluster

START = StartOut(4)
END = EndOut(FinishReason.STOP)


def test_a_refused_request_goes_elsewhere_and_old_attempts_are_not_heard(cluster: "Cluster") -> None:
    async def scenario() -> None:
        answer = await cluster.start(cluster.request())
        cluster.tokens("decode-0", ("r0", 1))
        cluster.failed("decode-0", "r0", FailureKind.REFUSED)
        assert cluster.submits() == [("decode-0", 0, "prefill-0"), ("decode-1", 1, "prefill-0")]
        assert cluster.num_assigned() == {"decode-1": 1, "prefill-0": 1}
        cluster.tokens("decode-0", ("r0", 0), ("r0", 1))
        cluster.failed("decode-0", "r0", FailureKind.ERROR)
        cluster.finished("decode-0", "r0", 1, attempt=1)  # not its decode worker
        cluster.finished("decode-1", "r0", 0, attempt=0)  # not its attempt
        cluster.tokens("prefill-0", ("r0", 0), attempt=1)
        cluster.finished("decode-1", "r0", 1, attempt=1)
        assert await answer == [START, TokensOut([100]), END]

    cluster.run(scenario())
    assert [record.decode_worker for record in cluster.router.recent_requests()] == ["decode-1"]


def test_attempts_are_limited(make_cluster: "Callable[..., Cluster]") -> None:
    cluster = make_cluster(max_refusals=2)
    for number in range(4):
        cluster.heartbeat(f"decode-{number}")

    async def scenario() -> None:
        answer = await cluster.start(cluster.request())
        cluster.failed("decode-0", "r0", FailureKind.REFUSED)
        cluster.failed("decode-1", "r0", FailureKind.REFUSED, attempt=1)
        with pytest.raises(UnavailableError, match=r"2 attempts.*no room"):
            await answer

    cluster.run(scenario())
    assert len(cluster.submits()) == 2
    assert cluster.num_assigned() == {}


def test_a_turn_that_did_not_come_is_told_with_when_to_come_back(cluster: "Cluster") -> None:
    async def scenario() -> None:
        answer = await cluster.start(cluster.request())
        cluster.failed("decode-0", "r0", FailureKind.QUEUED, text="its turn did not come")
        with pytest.raises(UnavailableError, match="its turn did not come") as error:
            await answer
        assert (error.value.code, error.value.retry_after_s) == ("queue_timeout", 1.0)

    cluster.run(scenario())
    assert cluster.num_assigned() == {}
    assert len(cluster.submits()) == 1


def test_a_refusal_is_final_if_nobody_else_is_there_or_time_is_up(cluster: "Cluster") -> None:
    async def scenario() -> None:
        answer = await cluster.start(cluster.request("r0"))
        cluster.failed("decode-0", "r0", FailureKind.REFUSED)
        cluster.failed("decode-1", "r0", FailureKind.REFUSED, attempt=1)
        with pytest.raises(UnavailableError, match="no room; no worker"):
            await answer
        late = await cluster.start(cluster.request("r1", within_s=5.0))
        cluster.clock.sleep(5.0)
        cluster.failed("decode-0", "r1", FailureKind.REFUSED)
        with pytest.raises(RequestTimeoutError):
            await late

    cluster.run(scenario())


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (FailureKind.INVALID, InvalidRequestError),
        (FailureKind.TIMEOUT, RequestTimeoutError),
        (FailureKind.ERROR, InternalError),
    ],
)
def test_failures_reach_the_client_after_its_tokens(
    cluster: "Cluster", kind: FailureKind, error: type[RequestError]
) -> None:
    async def scenario() -> None:
        async with cluster.router.serve(cluster.request()) as parts:
            cluster.tokens("prefill-0", ("r0", 0))
            cluster.failed("decode-0", "r0", kind, text="so it went")
            assert await anext(aiter(parts)) == START
            assert await anext(aiter(parts)) == TokensOut([100])
            with pytest.raises(error, match="so it went"):
                await anext(aiter(parts))

    cluster.run(scenario())
    assert [(record.outcome, record.num_output_tokens) for record in cluster.router.recent_requests()] == [
        ("failed", 1)
    ]
    assert cluster.sent(Abort) == []
    assert cluster.num_assigned() == {}


def test_an_unreachable_worker_is_passed_over(cluster: "Cluster") -> None:
    async def scenario() -> None:
        cluster.outbox.unreachable = {"ipc://decode-0"}
        answer = await cluster.start(cluster.request("r0"))
        assert cluster.submits() == [("decode-1", 1, "prefill-0")]
        assert cluster.num_assigned() == {"decode-1": 1, "prefill-0": 1}
        cluster.finished("decode-1", "r0", 0, attempt=1)
        await answer
        cluster.outbox.unreachable.add("ipc://decode-1")
        with pytest.raises(UnavailableError, match="does not read"):
            await cluster.ask(cluster.request("r1"))

    cluster.run(scenario())
    assert cluster.num_assigned() == {}


def test_leaving_early_aborts_and_counts_until_the_worker_confirms(cluster: "Cluster") -> None:
    async def scenario() -> None:
        async with cluster.router.serve(cluster.request()) as parts:
            cluster.tokens("prefill-0", ("r0", 0))
            assert await anext(aiter(parts)) == START
            assert await anext(aiter(parts)) == TokensOut([100])
        assert cluster.sent(Abort) == ["decode-0"]
        assert cluster.num_assigned() == {"decode-0": 1}
        cluster.tokens("decode-0", ("r0", 1))
        cluster.aborted("decode-1", "r0")  # not its worker
        assert cluster.router.status().num_requests == 1
        cluster.aborted("decode-0", "r0", num_tokens=2)
        cluster.aborted("decode-0", "r0", num_tokens=2)
        with pytest.raises(UnavailableError):
            await anext(aiter(parts))

    cluster.run(scenario())
    assert cluster.num_assigned() == {}
    assert [(record.outcome, record.num_output_tokens) for record in cluster.router.recent_requests()] == [
        ("aborted", 2)
    ]


def test_an_abort_that_nobody_confirms_is_given_up(cluster: "Cluster") -> None:
    async def scenario() -> None:
        cluster.outbox.unreachable = set()
        async with cluster.router.serve(cluster.request()):
            cluster.outbox.unreachable = {"ipc://decode-0"}
        cluster.advance(9.9)
        assert cluster.num_assigned() == {"decode-0": 1, "prefill-0": 1}
        cluster.advance(0.2)

    cluster.run(scenario())
    assert cluster.num_assigned() == {}
    assert [record.outcome for record in cluster.router.recent_requests()] == ["aborted"]


def test_an_end_that_crosses_the_abort_closes_it(cluster: "Cluster") -> None:
    async def scenario() -> None:
        async with cluster.router.serve(cluster.request("r0")):
            pass
        async with cluster.router.serve(cluster.request("r1")):
            pass
        cluster.finished("decode-0", "r0", 3)
        cluster.failed("decode-1", "r1", FailureKind.REFUSED)

    cluster.run(scenario())
    assert [record.outcome for record in cluster.router.recent_requests()] == ["aborted", "aborted"]
    assert cluster.num_assigned() == {}
    assert len(cluster.submits()) == 2


def test_leaving_after_the_end_aborts_nothing(cluster: "Cluster") -> None:
    async def scenario() -> None:
        async with cluster.router.serve(cluster.request("r0")):
            cluster.tokens("decode-0", ("r0", 0))
            cluster.finished("decode-0", "r0", 1)
        async with cluster.router.serve(cluster.request("r1")):
            cluster.finished("decode-0", "r1", 1)  # its token is still on another socket

    cluster.run(scenario())
    assert [record.outcome for record in cluster.router.recent_requests()] == ["stop", "aborted"]
    assert cluster.sent(Abort) == []


def test_the_deadline_ends_a_request_after_a_grace(cluster: "Cluster") -> None:
    async def scenario() -> None:
        answer = await cluster.start(cluster.request(within_s=5.0))
        cluster.advance(5.5)
        assert cluster.sent(Abort) == []
        cluster.advance(0.5)
        with pytest.raises(RequestTimeoutError):
            await answer
        assert cluster.sent(Abort) == ["decode-0"]
        assert cluster.router.status().num_requests == 1
        cluster.aborted("decode-0", "r0")

    cluster.run(scenario())
    assert cluster.num_assigned() == {}
    assert [record.outcome for record in cluster.router.recent_requests()] == ["failed"]


def test_an_answer_with_a_lost_token_is_asked_for_again(cluster: "Cluster") -> None:
    async def scenario() -> None:
        answer = await cluster.start(cluster.request())
        cluster.tokens("decode-0", ("r0", 1))
        cluster.finished("decode-0", "r0", 2)
        cluster.failed("decode-0", "r0", FailureKind.REFUSED)  # a second end is none
        cluster.exited("decode-0")  # it has said all it had to say
        cluster.advance(4.9)
        assert not answer.done()
        cluster.advance(0.2)
        assert cluster.submits()[1] == ("decode-1", 1, "prefill-0")
        cluster.tokens("decode-1", ("r0", 0), ("r0", 1), attempt=1)
        cluster.finished("decode-1", "r0", 2, attempt=1)
        assert await answer == [START, TokensOut([100, 101]), END]

    cluster.run(scenario())
    assert cluster.router.status().num_requests == 0
    assert cluster.sent(Abort) == []
    assert cluster.num_assigned() == {}


@pytest.mark.parametrize("has_successor", [False, True])
def test_a_dead_decode_workers_unanswered_requests_move(cluster: "Cluster", has_successor: bool) -> None:
    async def scenario() -> None:
        answer = await cluster.start(cluster.request())
        cluster.tokens("decode-0", ("r0", 1))
        if has_successor:
            cluster.heartbeat("decode-0", incarnation=2)
        cluster.exited("decode-0", incarnation=1)
        assert cluster.submits()[1] == ("decode-0" if has_successor else "decode-1", 1, "prefill-0")
        assert sorted(cluster.sent(PeerGone)) == ["decode-1", "prefill-0"]
        assert [peer.incarnation for peer in cluster.outbox.forgotten] == [1]
        decode, incarnation = ("decode-0", 2) if has_successor else ("decode-1", 1)
        cluster.tokens(decode, ("r0", 0), attempt=1, incarnation=incarnation)
        cluster.finished(decode, "r0", 1, attempt=1, incarnation=incarnation)
        assert await answer == [START, TokensOut([100]), END]

    cluster.run(scenario())
    assert cluster.num_assigned() == {}


def test_a_dead_workers_aborted_requests_are_closed(cluster: "Cluster") -> None:
    async def scenario() -> None:
        async with cluster.router.serve(cluster.request("r1")):
            pass
        cluster.exited("decode-0")  # it will not confirm the abort

    cluster.run(scenario())
    assert [record.outcome for record in cluster.router.recent_requests()] == ["aborted"]
    assert cluster.router.status().num_requests == 0


def test_without_a_successor_the_death_is_the_answer(make_cluster: "Callable[..., Cluster]") -> None:
    cluster = make_cluster()
    cluster.heartbeat("decode-0")

    async def scenario() -> None:
        answer = await cluster.start(cluster.request())
        cluster.exited("decode-0")
        with pytest.raises(UnavailableError, match="decode-0 died; no worker"):
            await answer

    cluster.run(scenario())


def test_a_dead_prefill_worker_costs_only_its_load(cluster: "Cluster") -> None:
    async def scenario() -> None:
        answer = await cluster.start(cluster.request())
        cluster.exited("prefill-0")
        assert sorted(cluster.sent(PeerGone)) == ["decode-0", "decode-1"]
        assert len(cluster.submits()) == 1
        assert cluster.num_assigned() == {"decode-0": 1}
        cluster.tokens("decode-0", ("r0", 0))
        cluster.tokens("prefill-0", ("r0", 0))  # what it sent before it died, late
        cluster.finished("decode-0", "r0", 1)
        assert await answer == [START, TokensOut([100]), END]
        following = await cluster.start(cluster.request("r1"))
        assert cluster.submits()[-1][2] is None
        following.cancel()
        await asyncio.wait([following])

    cluster.run(scenario())


def test_a_draining_or_silent_worker_keeps_its_requests_but_gets_no_new_ones(cluster: "Cluster") -> None:
    async def scenario() -> None:
        answer = await cluster.start(cluster.request("r0", within_s=100.0))
        cluster.heartbeat("decode-0", state=WorkerState.DRAINING)
        cluster.advance(11.0)
        with pytest.raises(UnavailableError):
            await cluster.ask(cluster.request("r1"))
        cluster.tokens("decode-0", ("r0", 0))
        cluster.finished("decode-0", "r0", 1)
        assert await answer == [START, TokensOut([100]), END]

    cluster.run(scenario())


def test_an_answer_dropped_unasked_is_a_failure(cluster: "Cluster") -> None:
    async def scenario() -> None:
        answer = await cluster.start(cluster.request())
        cluster.aborted("decode-0", "r0")
        with pytest.raises(UnavailableError, match="dropped"):
            await answer

    cluster.run(scenario())


def test_a_stopped_choice_is_aborted_and_the_others_go_on(cluster: "Cluster") -> None:
    async def scenario() -> None:
        async with cluster.router.serve(cluster.request(num_choices=2)) as answer:
            parts = aiter(answer)
            for choice in (0, 1):
                cluster.tokens("prefill-0", ("r0", 0), choice=choice)
            assert await anext(parts) == START
            assert await anext(parts) == TokensOut([100], 0)
            answer.stop_choice(0)
            assert [await anext(parts), await anext(parts)] == [EndOut(FinishReason.STOP, 0), TokensOut([100], 1)]
            assert [message.choice for _, message in cluster.outbox.sent if isinstance(message, Abort)] == [0]
            cluster.tokens("decode-0", ("r0", 1), choice=0)  # it did not know yet
            cluster.aborted("decode-0", "r0", num_tokens=2, choice=0)
            assert cluster.router.status().num_requests == 1
            cluster.tokens("decode-0", ("r0", 1), choice=1)
            cluster.finished("decode-0", "r0", 2, choice=1)
            assert [part async for part in parts] == [TokensOut([101], 1), EndOut(FinishReason.STOP, 1)]

    cluster.run(scenario())
    (record,) = cluster.router.recent_requests()
    assert (record.outcome, record.num_output_tokens) == ("stop", 4)
    assert cluster.num_assigned() == {}


def test_a_stop_string_is_an_end_like_any_other(cluster: "Cluster") -> None:
    async def scenario() -> None:
        async with cluster.router.serve(cluster.request()) as answer:
            cluster.tokens("prefill-0", ("r0", 0))
            answer.stop_choice(0)
            assert [part async for part in answer] == [START, END]
            assert cluster.router.status().num_requests == 1, "its blocks may still be held"
        cluster.aborted("decode-0", "r0", num_tokens=1, choice=0)

    cluster.run(scenario())
    assert [record.outcome for record in cluster.router.recent_requests()] == ["stop"]
    assert cluster.sent(Abort) == ["decode-0"], "once"
    assert cluster.num_assigned() == {}


def test_choices_count_as_sequences(cluster: "Cluster") -> None:
    async def scenario() -> None:
        answer = await cluster.start(cluster.request(num_choices=3))
        (_, load, _) = cluster.router._registry.worker_loads(4)
        assert (load.worker_id, load.num_answers + load.num_unread) == ("decode-0", 3)
        for choice in range(3):
            cluster.tokens("decode-0", ("r0", 0), choice=choice)
            cluster.finished("decode-0", "r0", 1, choice=choice)
        await answer

    cluster.run(scenario())
    assert cluster.num_assigned() == {}


def test_prompt_logprobs_come_with_the_start_and_no_prefix_is_looked_for(cluster: "Cluster") -> None:
    told = [TokenLogprobs(-1.0, 1, [])]

    async def scenario() -> None:
        cluster.caches("decode-1", 2)
        request = cluster.request()
        sampling = msgspec.structs.replace(request.sampling, num_prompt_logprobs=0)
        answer = await cluster.start(msgspec.structs.replace(request, sampling=sampling))
        assert cluster.submits()[0][0] == "decode-0", "what decode-1 has cached is of no use"
        started = Started(request_id=request.request_id, attempt=0, num_cached_tokens=0, prompt_logprobs=told)
        cluster.router.on_message(Tokens(worker_id=WorkerId("prefill-0"), incarnation=1, started=[started]))
        cluster.tokens("prefill-0", ("r0", 0))
        cluster.finished("decode-0", "r0", 1)
        assert (await answer)[0] == StartOut(0, told)

    cluster.run(scenario())


def test_another_salt_finds_nothing(cluster: "Cluster") -> None:
    async def scenario() -> None:
        cluster.caches("decode-1", 2)
        await cluster.start(cluster.request("r0"))
        await cluster.start(msgspec.structs.replace(cluster.request("r1"), cache_salt="mine"))

    cluster.run(scenario())
    assert [submit[0] for submit in cluster.submits()] == ["decode-1", "decode-0"]


@pytest.mark.parametrize("parts", [[(index, index + 1) for index in range(9)], [(0, 9)], [(0, 2), (1, 6), (6, 9)]])
def test_tokens_told_at_once_count_like_tokens_told_one_by_one(
    make_cluster: "Callable[..., Cluster]", parts: list[tuple[int, int]]
) -> None:
    """A prompt of 10 tokens in blocks of 4: the answer's third and seventh token want a block more."""
    cluster = make_cluster()
    cluster.heartbeat("decode-0")

    def num_used() -> int:
        return sum(load.num_used_blocks for load in cluster.router._registry.worker_loads(4))

    async def scenario() -> None:
        answer = await cluster.start(cluster.request(max_tokens=9))
        before = num_used()
        for begin, end in parts:
            run = TokenRun(RequestId("r0"), 0, begin, list(range(100 + begin, 100 + end)))
            cluster.router.on_message(Tokens(worker_id=WorkerId("decode-0"), incarnation=1, runs=[run]))
        assert num_used() == before + 2
        cluster.finished("decode-0", "r0", 9)
        await answer

    cluster.run(scenario())
    assert [(one.outcome, one.num_output_tokens) for one in cluster.router.recent_requests()] == [("stop", 9)]
