"""The router over real sockets: one prefill and one decode worker that answer as the protocol says."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
import zmq
import zmq.asyncio

from diptych.core.clock import SystemClock
from diptych.core.events import FinishReason
from diptych.core.ids import WorkerId
from diptych.core.messages import (
    Abort,
    Aborted,
    Finished,
    Heartbeat,
    PeerAddress,
    Role,
    Submit,
    TokenEvent,
    Tokens,
    ToRouter,
    ToWorker,
)
from diptych.core.request import Request
from diptych.core.service import EndOut, TokensOut
from diptych.kv.hashing import BlockHasher
from diptych.router.router import Router
from diptych.router.settings import RouterSettings
from diptych.wire.mailbox import AsyncInbox, Outbox

if TYPE_CHECKING:
    from tests.router.conftest import Cluster

DECODE, PREFILL = WorkerId("decode-0"), WorkerId("prefill-0")


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what messages bring about; the scenario's own limit ends a wait in vain."""
    while not condition():  # noqa: ASYNC110  the router has no hook for tests, and needs none
        await asyncio.sleep(0.001)


class Wire:
    """A router with sockets of its own, and two workers in the same loop with one socket each way."""

    def __init__(self, folder: Path, context: zmq.asyncio.Context) -> None:
        self.router_endpoint = f"ipc://{folder}/router"
        self.decode = PeerAddress(DECODE, f"ipc://{folder}/decode-0", 1)
        self.prefill = PeerAddress(PREFILL, f"ipc://{folder}/prefill-0", 1)
        plain: zmq.Context[zmq.Socket[bytes]] = zmq.Context(context)
        self.router_inbox: AsyncInbox[ToRouter] = AsyncInbox(context, self.router_endpoint, ToRouter)
        self.decode_inbox: AsyncInbox[ToWorker] = AsyncInbox(context, self.decode.endpoint, ToWorker)
        self.router_outbox, self.decode_outbox, self.prefill_outbox = Outbox(plain), Outbox(plain), Outbox(plain)
        self.router = Router(
            model="tiny",
            max_model_len=256,
            hasher=BlockHasher("tiny", "layout", block_size=32),
            inbox=self.router_inbox,
            outbox=self.router_outbox,
            clock=SystemClock(),
            settings=RouterSettings(),
            expected_workers={DECODE: Role.DECODE, PREFILL: Role.PREFILL},
        )

    def close(self) -> None:
        for end in (self.router_inbox, self.decode_inbox, self.router_outbox, self.decode_outbox, self.prefill_outbox):
            end.close()

    async def wait_for_ready(self, cluster: "Cluster") -> None:
        """Send the workers' first heartbeats and wait until the router has read them."""
        status = cluster.router.status().workers[DECODE].status
        self.decode_outbox.send(self.router_endpoint, Heartbeat(role=Role.DECODE, address=self.decode, status=status))
        self.prefill_outbox.send(
            self.router_endpoint, Heartbeat(role=Role.PREFILL, address=self.prefill, status=status)
        )
        await until(lambda: self.router.status().health == "ready")

    async def answer_next(self, num_tokens: int) -> Submit:
        """Answer the next request, the decode worker's part ahead of the first token."""
        submit = await self.decode_inbox.receive()
        assert isinstance(submit, Submit)
        request_id = submit.request.request_id
        events = [TokenEvent(request_id, submit.attempt, index, 100 + index) for index in range(num_tokens)]
        finished = Finished(
            request_id=request_id,
            attempt=submit.attempt,
            choice=0,
            reason=FinishReason.STOP,
            num_output_tokens=num_tokens,
            num_cached_tokens=0,
            num_preemptions=0,
            timeline={},
        )
        rest = Tokens(worker_id=DECODE, incarnation=1, tokens=events[1:], finished=[finished])
        self.decode_outbox.send(self.router_endpoint, rest)
        self.prefill_outbox.send(self.router_endpoint, Tokens(worker_id=PREFILL, incarnation=1, tokens=events[:1]))
        return submit


@contextlib.asynccontextmanager
async def running(folder: Path, cluster: "Cluster") -> AsyncIterator[Wire]:
    context = zmq.asyncio.Context()
    wire = Wire(folder, context)
    task = asyncio.create_task(wire.router.run())
    try:
        async with asyncio.timeout(20):
            await wire.wait_for_ready(cluster)
            yield wire
    finally:
        task.cancel()
        await asyncio.wait([task])
        wire.close()
        context.term()


@pytest.fixture
def request_of(cluster: "Cluster") -> "Callable[[str], Request]":
    """Return what makes requests of 100 prompt tokens whose deadline is by the machine's clock."""

    def make(name: str) -> Request:
        now_s = SystemClock().now_s()
        request = cluster.request(name, num_prompt_tokens=100)
        return msgspec.structs.replace(request, arrived_s=now_s, deadline_s=now_s + 30.0)

    return make


def test_answers_cross_real_sockets(tmp_path: Path, cluster: "Cluster", request_of: "Callable[[str], Request]") -> None:
    async def scenario() -> None:
        async with running(tmp_path, cluster) as wire:
            for number in range(3):
                async with wire.router.serve(request_of(f"r{number}")) as parts:
                    submit = await wire.answer_next(num_tokens=5)
                    assert submit.prefill == wire.prefill
                    got = [part async for part in parts]
                tokens = [token for part in got if isinstance(part, TokensOut) for token in part.token_ids]
                assert tokens == [100, 101, 102, 103, 104]
                assert got[-1] == EndOut(FinishReason.STOP)
            assert wire.router.status().num_requests == 0

    cluster.run(scenario())


def test_leaving_reaches_the_worker(tmp_path: Path, cluster: "Cluster", request_of: "Callable[[str], Request]") -> None:
    async def scenario() -> None:
        async with running(tmp_path, cluster) as wire:
            async with wire.router.serve(request_of("r0")):
                submit = await wire.decode_inbox.receive()
                assert isinstance(submit, Submit)
            abort = await wire.decode_inbox.receive()
            assert abort == Abort(request_id=submit.request.request_id)
            aborted = Aborted(request_id=abort.request_id, choice=None, num_output_tokens=0, timeline={})
            wire.decode_outbox.send(wire.router_endpoint, Tokens(worker_id=DECODE, incarnation=1, aborted=[aborted]))
            await until(lambda: wire.router.status().num_requests == 0)

    cluster.run(scenario())
