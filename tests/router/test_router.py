"""The router among scripted workers: admission, placement, health, the end."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from diptych.core.errors import (
    InvalidRequestError,
    OverloadedError,
    RequestTimeoutError,
    UnavailableError,
)
from diptych.core.events import FinishReason, Lifecycle
from diptych.core.ids import WorkerId
from diptych.core.messages import Role, ToRouter, WorkerExited
from diptych.core.service import EndOut, RequestService, StartOut, TokensOut
from diptych.router.history import MAX_RECENT_REQUESTS

if TYPE_CHECKING:
    from tests.router.conftest import Cluster

START = StartOut(4)
END = EndOut(FinishReason.STOP)


def test_an_answer_from_two_workers_comes_in_order(cluster: "Cluster") -> None:
    async def scenario() -> None:
        answer = await cluster.start(cluster.request())
        assert cluster.submits() == [("decode-0", 0, "prefill-0")]
        assert cluster.num_assigned() == {"decode-0": 1, "prefill-0": 1}
        cluster.tokens("decode-0", ("r0", 1), ("r0", 2))
        cluster.finished("decode-0", "r0", 3)
        assert cluster.router.status().num_requests == 1
        assert cluster.num_assigned() == {}
        cluster.tokens("prefill-0", ("r0", 0))
        assert await answer == [START, TokensOut([100, 101, 102]), END]
        assert cluster.router.status().num_requests == 0

    cluster.run(scenario())
    (record,) = cluster.router.recent_requests()
    assert (record.outcome, record.decode_worker, record.prefill_worker) == ("stop", "decode-0", "prefill-0")
    assert (record.num_prompt_tokens, record.num_cached_tokens, record.num_output_tokens) == (10, 4, 3)
    assert record.num_preemptions == 1
    assert record.timeline == {
        Lifecycle.ARRIVED: 1000.0,
        Lifecycle.ROUTED: 1000.0,
        Lifecycle.RESERVED: 1.0,
        Lifecycle.FINISHED: 1002.0,
    }


def test_the_frontend_can_use_it(cluster: "Cluster") -> None:
    service: RequestService = cluster.router  # mypy holds the signatures
    assert service.status().model == "tiny"
    assert service.recent_requests() == []


def test_the_prefill_load_ends_with_the_first_token(cluster: "Cluster") -> None:
    async def scenario() -> None:
        answer = await cluster.start(cluster.request())
        cluster.tokens("prefill-0", ("r0", 0))
        assert cluster.num_assigned() == {"decode-0": 1}
        cluster.finished("decode-0", "r0", 1)
        await answer

    cluster.run(scenario())


def test_placement_follows_load_and_prefix(cluster: "Cluster") -> None:
    async def scenario() -> None:
        tasks = [await cluster.start(cluster.request(f"r{number}")) for number in range(2)]
        assert [decode for decode, _, _ in cluster.submits()] == ["decode-0", "decode-1"]
        cluster.caches("decode-1", 2)
        tasks.append(await cluster.start(cluster.request("r2")))
        # The rest of the prompt, 10 - 8 tokens, is short: no hand-over.
        assert cluster.submits()[-1] == ("decode-1", 0, None)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    cluster.run(scenario())


def test_mixed_workers_prefill_themselves(make_cluster: "Callable[..., Cluster]") -> None:
    cluster = make_cluster()
    cluster.heartbeat("mixed-0")
    cluster.heartbeat("prefill-0")

    async def scenario() -> None:
        answer = await cluster.start(cluster.request(num_prompt_tokens=40))
        assert cluster.submits() == [("mixed-0", 0, None)]
        cluster.tokens("mixed-0", ("r0", 0))
        cluster.finished("mixed-0", "r0", 1)
        assert await answer == [START, TokensOut([100]), END]

    cluster.run(scenario())


def test_refuses_what_it_cannot_serve(make_cluster: "Callable[..., Cluster]") -> None:
    cluster = make_cluster(max_outstanding_requests=1)

    async def scenario() -> None:
        with pytest.raises(UnavailableError, match="no worker that can take this request"):
            await cluster.ask(cluster.request())
        cluster.heartbeat("prefill-0")
        with pytest.raises(UnavailableError, match="no worker that can take this request"):
            await cluster.ask(cluster.request())
        cluster.heartbeat("decode-0")
        for num_prompt_tokens in (0, 64):
            with pytest.raises(InvalidRequestError):
                await cluster.ask(cluster.request(num_prompt_tokens=num_prompt_tokens))
        with pytest.raises(RequestTimeoutError):
            await cluster.ask(cluster.request(within_s=0.0))
        first = await cluster.start(cluster.request("r0"))
        with pytest.raises(OverloadedError) as overloaded:
            await cluster.ask(cluster.request("r1"))
        assert overloaded.value.retry_after_s >= 1.0
        cluster.finished("decode-0", "r0", 0)
        await first
        cluster.router.begin_drain()
        with pytest.raises(UnavailableError, match="shutting down"):
            await cluster.ask(cluster.request())

    cluster.run(scenario())
    assert len(cluster.router.recent_requests()) == 1


def test_an_id_in_use_is_refused(cluster: "Cluster") -> None:
    async def scenario() -> None:
        first = await cluster.start(cluster.request())
        with pytest.raises(InvalidRequestError, match="r0"):
            await cluster.ask(cluster.request())
        cluster.finished("decode-0", "r0", 0)
        assert await first == [StartOut(0), END]

    cluster.run(scenario())


def test_health_through_a_life(make_cluster: "Callable[..., Cluster]") -> None:
    cluster = make_cluster({"decode-0": Role.DECODE, "prefill-0": Role.PREFILL})

    def health() -> str:
        return cluster.router.status().health

    assert health() == "starting"
    assert cluster.router.status().workers.keys() == {"decode-0", "prefill-0"}
    cluster.heartbeat("decode-0")
    assert health() == "starting"
    cluster.heartbeat("prefill-0")
    assert health() == "ready"
    cluster.exited("prefill-0")
    assert health() == "ready"
    cluster.advance(10.5)
    assert health() == "unavailable"
    cluster.heartbeat("decode-0")
    assert health() == "ready"
    cluster.router.begin_drain()
    assert health() == "draining"


def test_stopping_ends_every_request(cluster: "Cluster") -> None:
    async def scenario() -> None:
        running = asyncio.create_task(cluster.router.run())
        answers = [await cluster.start(cluster.request(f"r{number}")) for number in range(3)]
        cluster.finished("decode-0", "r0", 1)  # its token is missing
        running.cancel()
        outcomes = await asyncio.gather(*answers, return_exceptions=True)
        assert [str(outcome) for outcome in outcomes] == ["the server is shutting down; send the request again"] * 3
        with pytest.raises(UnavailableError):
            await cluster.ask(cluster.request("r9"))
        with pytest.raises(asyncio.CancelledError):
            await running

    cluster.run(scenario())
    assert cluster.router.status().num_requests == 0
    assert len(cluster.router.recent_requests()) == 3
    assert cluster.num_assigned() == {}


def test_a_flood_of_messages_does_not_hold_up_the_streams(cluster: "Cluster") -> None:
    num_received, num_turns = 0, 0

    async def receive() -> ToRouter:
        """Return at once, as a full inbox does."""
        nonlocal num_received
        num_received += 1
        if num_received > 100:
            await asyncio.get_running_loop().create_future()
        return WorkerExited(worker_id=WorkerId("nobody"), incarnation=0, exit_status=0)

    async def scenario() -> None:
        nonlocal num_turns
        running = asyncio.create_task(cluster.router.run())
        while num_received <= 100:
            await asyncio.sleep(0)
            num_turns += 1
        running.cancel()
        await asyncio.wait([running])

    cluster.inbox.receive = receive  # type: ignore[method-assign]
    cluster.run(scenario())
    assert num_turns >= 100


def test_the_history_is_bounded_and_sets_retry_after(make_cluster: "Callable[..., Cluster]") -> None:
    cluster = make_cluster(max_outstanding_requests=1)
    cluster.heartbeat("decode-0")

    async def scenario() -> None:
        for number in range(MAX_RECENT_REQUESTS + 5):
            async with cluster.router.serve(cluster.request(f"r{number}")):
                cluster.finished("decode-0", f"r{number}", 0)
        async with cluster.router.serve(cluster.request("slow")):
            with pytest.raises(OverloadedError) as overloaded:
                await cluster.ask(cluster.request("next"))
        assert overloaded.value.retry_after_s == 1.0

    cluster.run(scenario())
    records = cluster.router.recent_requests()
    assert len(records) == MAX_RECENT_REQUESTS
    assert records[-1].request_id == f"r{MAX_RECENT_REQUESTS + 4}"
