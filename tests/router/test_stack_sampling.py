"""A worker is asked where its time goes, and answers, or does not."""

import asyncio
from typing import TYPE_CHECKING

import pytest

from diptych.core.errors import NotFoundError, UnavailableError
from diptych.core.ids import WorkerId
from diptych.core.messages import SampleStacks, StackSamples

if TYPE_CHECKING:
    from tests.router.conftest import Cluster

WORKER = WorkerId("decode-0")


def samples(number: int, **stacks: int) -> StackSamples:
    return StackSamples(worker_id=WORKER, incarnation=1, number=number, interval_s=0.01, stacks=stacks)


async def begin(cluster: "Cluster") -> asyncio.Task[StackSamples]:
    task = asyncio.create_task(cluster.router.sample_worker(WORKER, 20.0))
    await cluster.let_run()
    return task


def test_the_answer_to_this_order_counts(cluster: "Cluster") -> None:
    async def scenario() -> None:
        task = await begin(cluster)
        (order,) = [message for _, message in cluster.outbox.sent if isinstance(message, SampleStacks)]
        assert order.duration_s == 20.0
        cluster.router.on_message(samples(order.number + 1, idle=1))
        await cluster.let_run()
        assert not task.done()
        cluster.router.on_message(samples(order.number, engine=7))
        cluster.router.on_message(samples(order.number, engine=8))  # nobody waits any more
        assert (await task).stacks == {"engine": 7}

    cluster.run(scenario())


def test_one_at_a_time(cluster: "Cluster") -> None:
    async def scenario() -> None:
        task = await begin(cluster)
        with pytest.raises(UnavailableError, match="is being profiled already"):
            await cluster.router.sample_worker(WORKER, 1.0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        again = await begin(cluster)
        cluster.router.on_message(samples(2, idle=1))
        assert (await again).stacks == {"idle": 1}

    cluster.run(scenario())


def test_a_worker_that_dies_meanwhile(cluster: "Cluster") -> None:
    async def scenario() -> None:
        task = await begin(cluster)
        cluster.exited(WORKER)
        with pytest.raises(UnavailableError, match="has ended while it was being profiled"):
            await task
        with pytest.raises(UnavailableError, match="is down"):
            await cluster.router.sample_worker(WORKER, 1.0)
        with pytest.raises(NotFoundError, match="no worker decode-9"):
            await cluster.router.sample_worker(WorkerId("decode-9"), 1.0)

    cluster.run(scenario())


def test_a_worker_that_does_not_answer(cluster: "Cluster", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diptych.router.stack_sampling.GRACE_S", 0.01)

    async def scenario() -> None:
        with pytest.raises(UnavailableError, match="has not answered"):
            await cluster.router.sample_worker(WORKER, 0.01)
        cluster.outbox.unreachable.add("ipc://decode-0")
        with pytest.raises(UnavailableError, match="has not answered"):
            await cluster.router.sample_worker(WORKER, 0.01)

    cluster.run(scenario())
