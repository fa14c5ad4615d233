"""Ties the work for a request to the client that waits for it, and to the server's own end.

Invariants: work for a client that hung up is cancelled at once, whatever it waits for; no request outlives its
deadline, also not because its client does not read; after `Intake.close` nothing new begins.
"""

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.types import Receive

from diptych.core.errors import OverloadedError, RequestError, RequestTimeoutError, UnavailableError

log = logging.getLogger(__name__)
Result = TypeVar("Result")

ROUTER_GRACE_S = 5.0
"""How much later than the router the frontend gives up: the router's own error says more."""


class ClientGoneError(Exception):
    """The client hung up: there is nobody to answer."""


class Intake:
    """Counts requests in flight, and lets none in once the server drains. Owned by the event loop."""

    def __init__(self, max_requests: int) -> None:
        self._max_requests = max_requests
        self._num_in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._cut_off = asyncio.Event()
        self.is_open = True

    @contextlib.contextmanager
    def admit(self) -> Iterator[None]:
        """Hold a place while the block runs.

        Raises: UnavailableError when draining, OverloadedError when all places are taken.
        """
        if not self.is_open:
            raise UnavailableError("the server is shutting down; send this request elsewhere", code="draining")
        if self._num_in_flight >= self._max_requests:
            raise OverloadedError(f"{self._max_requests} requests are in flight, which is the most; try again later")
        self._num_in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._num_in_flight -= 1
            if self._num_in_flight == 0:
                self._idle.set()

    def close(self) -> None:
        """Refuse new requests; those in flight go on."""
        self.is_open = False

    def cut_off(self) -> None:
        """End the requests in flight with an error that their clients hear."""
        self._cut_off.set()

    async def try_wait_until_idle(self, timeout_s: float) -> bool:
        """Return True as soon as nothing is in flight, False after `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        return self._idle.is_set()

    async def wait_for_cut_off(self) -> None:
        """Return when requests in flight must end."""
        await self._cut_off.wait()


@dataclass(frozen=True, slots=True)
class ClientConnection:
    """The client of one request, whose HTTP body has been read."""

    receive: Receive
    intake: Intake
    timeout_s: float
    """From now to the last byte of the answer."""

    async def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Return what `work` returns, unless its client, its time or the server is gone before.

        In those cases `work` has been cancelled, and has finished, when this raises.

        Raises: ClientGoneError, RequestTimeoutError, UnavailableError; whatever `work` raises.
        """
        work_task = asyncio.create_task(work)
        hang_up = asyncio.create_task(_wait_for_hang_up(self.receive))
        cut_off = asyncio.create_task(self.intake.wait_for_cut_off())
        tasks: tuple[asyncio.Task[Any], ...] = (work_task, hang_up, cut_off)
        try:
            await asyncio.wait(tasks, timeout=self.timeout_s + ROUTER_GRACE_S, return_when=asyncio.FIRST_COMPLETED)
            if work_task.done():
                return work_task.result()
            if hang_up.done():
                raise ClientGoneError
            if cut_off.done():
                raise UnavailableError("the server shut down before the answer was complete", code="draining")
            raise RequestTimeoutError(f"the answer was not complete after {self.timeout_s:.0f} s")
        finally:
            await _cancel(tasks)


async def _wait_for_hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(tasks: tuple[asyncio.Task[Any], ...]) -> None:
    """Cancel what still runs, wait for its end, and report what went wrong on the way out."""
    running = [task for task in tasks if not task.done()]
    for task in running:
        task.cancel()
    for outcome in await asyncio.gather(*running, return_exceptions=True):
        if isinstance(outcome, Exception) and not isinstance(outcome, RequestError):
            log.error("a request could not be ended cleanly", exc_info=outcome)
