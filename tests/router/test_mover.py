"""A request whose worker is gone goes on elsewhere, from the tokens that its client has; or waits; but not forever."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from diptych.core.errors import UnavailableError
from diptych.core.events import FinishReason, Lifecycle
from diptych.core.ids import WorkerId
from diptych.core.messages import Abort, FailureKind, FormerAttempt, Submit, WorkerState
from diptych.core.service import EndOut, StartOut, TokensOut

if TYPE_CHECKING:
    from tests.router.conftest import Cluster

START = StartOut(4)
END = EndOut(FinishReason.STOP)


def test_a_running_answer_goes_on_where_its_client_is(cluster: "Cluster") -> None:
    async def scenario() -> None:
        answer = await cluster.start(cluster.request())
        cluster.tokens("prefill-0", ("r0", 0))
        cluster.tokens("decode-0", ("r0", 1))
        cluster.tokens("decode-0", ("r0", 3))  # token 2 was lost with its worker
        cluster.exited("decode-0")
        submit = cluster.last_submit()
        assert cluster.submits()[-1] == ("decode-1", 1, "prefill-0")
        assert submit.answers == {0: [100, 101]}
        assert submit.former == FormerAttempt(worker_id=WorkerId("decode-0"), attempt=0)
        cluster.tokens("decode-0", ("r0", 2))  # an echo
        cluster.tokens("decode-1", ("r0", 2), ("r0", 3), attempt=1)
        cluster.finished("decode-1", "r0", 4, attempt=1)
        assert await answer == [START, TokensOut([100, 101, 102, 103]), END]

    cluster.run(scenario())
    (record,) = cluster.router.recent_requests()
    assert (record.outcome, record.num_migrations, record.num_output_tokens) == ("stop", 1, 4)
    assert record.decode_worker == "decode-1"
    assert record.timeline[Lifecycle.FIRST_TOKEN] <= record.timeline[Lifecycle.MIGRATED]
    assert cluster.num_assigned() == {}


def test_only_choices_that_have_not_ended_go_on(cluster: "Cluster") -> None:
    async def scenario() -> None:
        answer = await cluster.start(cluster.request(num_choices=3))
        for choice in range(3):
            cluster.tokens("prefill-0", ("r0", 0), choice=choice)
        cluster.tokens("decode-0", ("r0", 1), choice=1)
        cluster.finished("decode-0", "r0", 1, choice=0)
        cluster.exited("decode-0")
        assert cluster.last_submit().answers == {1: [100, 101], 2: [100]}
        cluster.finished("decode-1", "r0", 2, attempt=1, choice=1)
        cluster.finished("decode-1", "r0", 1, attempt=1, choice=2)
        ends = [part.choice for part in await answer if isinstance(part, EndOut)]
        assert sorted(ends) == [0, 1, 2]

    cluster.run(scenario())
    assert [record.num_output_tokens for record in cluster.router.recent_requests()] == [4]


def test_a_refusal_after_the_first_token_is_no_end_either(cluster: "Cluster") -> None:
    async def scenario() -> None:
        answer = await cluster.start(cluster.request())
        cluster.tokens("prefill-0", ("r0", 0))
        cluster.failed("decode-0", "r0", FailureKind.REFUSED)
        assert cluster.last_submit().answers == {0: [100]}
        cluster.finished("decode-1", "r0", 1, attempt=1)
        assert await answer == [START, TokensOut([100]), END]

    cluster.run(scenario())


def test_who_has_no_worker_waits_for_one_to_come_back(make_cluster: "Callable[..., Cluster]") -> None:
    cluster = make_cluster()
    cluster.heartbeat("mixed-0")

    async def scenario() -> None:
        answer = await cluster.start(cluster.request("r0", within_s=100.0))
        cluster.tokens("mixed-0", ("r0", 0))
        cluster.exited("mixed-0", will_return=True)
        late = await cluster.start(cluster.request("r1", within_s=100.0))
        assert len(cluster.submits()) == 1
        cluster.advance(20.0)
        cluster.heartbeat("mixed-0", incarnation=2, state=WorkerState.STARTING)
        assert len(cluster.submits()) == 1
        cluster.heartbeat("mixed-0", incarnation=2)
        assert len(cluster.submits()) == 3
        cluster.finished("mixed-0", "r0", 1, attempt=1, incarnation=2)
        cluster.tokens("mixed-0", ("r1", 0), incarnation=2)
        cluster.finished("mixed-0", "r1", 1, incarnation=2)
        assert await answer == [START, TokensOut([100]), END]
        assert await late == [START, TokensOut([100]), END]

    cluster.run(scenario())
    assert cluster.num_assigned() == {}


def test_a_turn_that_came_just_as_it_was_given_up_counts(cluster: "Cluster") -> None:
    async def scenario() -> None:
        answer = await cluster.start(cluster.request())
        cluster.tokens("prefill-0", ("r0", 0))
        cluster.failed("decode-0", "r0", FailureKind.QUEUED, text="its turn did not come")
        assert [worker for worker, *_ in cluster.submits()] == ["decode-0", "decode-1"], "another goes on"
        cluster.tokens("decode-1", ("r0", 1), attempt=1)
        cluster.finished("decode-1", "r0", 2, attempt=1)
        assert await answer == [START, TokensOut([100, 101]), END]

    cluster.run(scenario())
    assert cluster.num_assigned() == {}


def test_nobody_waits_for_a_worker_forever(make_cluster: "Callable[..., Cluster]") -> None:
    cluster = make_cluster(homeless_timeout_s=10.0)
    cluster.heartbeat("mixed-0")

    async def scenario() -> None:
        answer = await cluster.start(cluster.request(within_s=100.0))
        cluster.exited("mixed-0", will_return=True)
        cluster.advance(9.9)
        assert not answer.done()
        cluster.advance(0.2)
        with pytest.raises(UnavailableError, match="mixed-0 died, and none came back in 10 s"):
            await answer
        waiting = await cluster.start(cluster.request("r1", within_s=100.0))
        cluster.exited("mixed-0", incarnation=2, outlook="it has died too often")  # the replacement, before it spoke
        with pytest.raises(UnavailableError, match="no worker that can take this request is up"):
            await waiting

    cluster.run(scenario())
    assert cluster.router.status().num_requests == 0
    assert cluster.router.status().workers[WorkerId("mixed-0")].outlook == "it has died too often"


def test_a_new_request_waits_for_a_worker_as_long_as_for_its_turn(make_cluster: "Callable[..., Cluster]") -> None:
    cluster = make_cluster(homeless_timeout_s=30.0, queue_timeout_s=5.0)
    cluster.heartbeat("mixed-0")

    async def scenario() -> None:
        moved = await cluster.start(cluster.request("r0", within_s=100.0))
        cluster.exited("mixed-0", will_return=True)
        new = await cluster.start(cluster.request("r1", within_s=100.0))
        cluster.advance(4.9)
        assert not new.done()
        cluster.advance(0.2)
        with pytest.raises(UnavailableError, match=r"none came back in 5 s \(--queue-timeout-s\)") as refusal:
            await new
        assert (refusal.value.code, refusal.value.retry_after_s) == ("queue_timeout", 1.0)
        assert not moved.done(), "it has had its turn"
        cluster.advance(25.0)
        with pytest.raises(UnavailableError, match="mixed-0 died, and none came back in 30 s") as loss:
            await moved
        assert loss.value.retry_after_s is not None

    cluster.run(scenario())


def test_who_waits_for_a_worker_may_leave(make_cluster: "Callable[..., Cluster]") -> None:
    cluster = make_cluster()
    cluster.heartbeat("mixed-0")

    async def scenario() -> None:
        answer = await cluster.start(cluster.request())
        cluster.exited("mixed-0", will_return=True)
        answer.cancel()
        await asyncio.wait([answer])

    cluster.run(scenario())
    assert [record.outcome for record in cluster.router.recent_requests()] == ["aborted"]
    assert cluster.router.status().num_requests == 0
    assert cluster.sent(Abort) == []


def test_a_request_that_kills_workers_is_stopped(make_cluster: "Callable[..., Cluster]") -> None:
    cluster = make_cluster(max_migrations=2)
    for number in range(4):
        cluster.heartbeat(f"mixed-{number}")

    async def scenario() -> None:
        answer = await cluster.start(cluster.request())
        cluster.exited("mixed-0")
        cluster.exited("mixed-1", exit_status=0)  # that one was asked to go
        cluster.exited("mixed-2")
        assert not answer.done()
        cluster.exited("mixed-3")
        with pytest.raises(UnavailableError, match="3 workers have died while they served this request"):
            await answer

    cluster.run(scenario())
    assert len(cluster.submits()) == 4
    assert cluster.num_assigned() == {}


def test_a_choice_that_its_client_has_stopped_does_not_go_on(make_cluster: "Callable[..., Cluster]") -> None:
    cluster = make_cluster()
    cluster.heartbeat("mixed-0")

    async def scenario() -> None:
        async with cluster.router.serve(cluster.request(num_choices=2)) as answer:
            cluster.exited("mixed-0", will_return=True)
            answer.stop_choice(0)
            cluster.heartbeat("mixed-0", incarnation=2)
            assert cluster.last_submit().answers == {1: []}
            cluster.exited("mixed-0", incarnation=2, will_return=True)
            answer.stop_choice(1)
            assert [part.choice for part in [one async for one in answer] if isinstance(part, EndOut)] == [0, 1]

    cluster.run(scenario())
    assert [record.outcome for record in cluster.router.recent_requests()] == ["stop"]
    assert cluster.router.status().num_requests == 0
    assert len([one for one in cluster.outbox.sent if isinstance(one[1], Submit)]) == 2
