"""Asks workers where their time goes, and waits for what they have seen."""

import asyncio

from diptych.core.errors import NotFoundError, PeerUnreachableError, UnavailableError
from diptych.core.ids import RouterId, WorkerId
from diptych.core.messages import SampleStacks, StackSamples
from diptych.router.ports import LetterBox
from diptych.router.registry import WorkerLife, WorkerRegistry

GRACE_S = 5.0
"""How much longer than it was to look a worker may take to answer."""


class StackSampling:
    """One order a worker at a time. Owned by the event loop's thread."""

    def __init__(self, registry: WorkerRegistry, outbox: LetterBox, router: RouterId) -> None:
        """`router`: who asks."""
        self._router = router
        self._registry = registry
        self._outbox = outbox
        self._number = 0
        self._waiting: dict[WorkerId, tuple[int, asyncio.Future[StackSamples]]] = {}

    async def sample(self, worker_id: WorkerId, duration_s: float) -> StackSamples:
        """Return what a worker was seen doing, after `duration_s` seconds.

        Raises: NotFoundError; UnavailableError if it is down, dies, is being looked at already or does not answer.
        """
        life = self._registry.find(worker_id)
        if life is None:
            raise NotFoundError(f"there is no worker {worker_id}; `diptych status` lists them")
        if life.is_over:
            raise UnavailableError(f"{worker_id} is down; `diptych status` says what happens next")
        if worker_id in self._waiting:
            raise UnavailableError(f"{worker_id} is being profiled already; try again when that is over")
        self._number += 1
        future: asyncio.Future[StackSamples] = asyncio.get_running_loop().create_future()
        self._waiting[worker_id] = self._number, future
        order = SampleStacks(number=self._number, duration_s=duration_s, router=self._router)
        try:
            self._outbox.send(life.address.endpoint, order)
            return await asyncio.wait_for(future, duration_s + GRACE_S)
        except (PeerUnreachableError, TimeoutError):
            raise UnavailableError(f"{worker_id} has not answered; is it being profiled already?") from None
        finally:
            del self._waiting[worker_id]

    def on_samples(self, message: StackSamples) -> None:
        """Take a worker's answer; one that nobody waits for any more is passed over."""
        number, future = self._waiting.get(message.worker_id, (0, None))
        if future is not None and number == message.number and not future.done():
            future.set_result(message)

    def on_worker_gone(self, life: WorkerLife) -> None:
        """End the wait for a worker that is over."""
        _, future = self._waiting.get(life.worker_id, (0, None))
        if future is not None and not future.done():
            future.set_exception(UnavailableError(f"{life.worker_id} has ended while it was being profiled"))
