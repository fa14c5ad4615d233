"""Workers that are being taken out of service: they get nothing new, and go when they have nothing left, or in time."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from diptych.core.clock import Clock
from diptych.core.errors import NotFoundError, UnavailableError
from diptych.core.ids import WorkerId
from diptych.core.messages import Drain, PeerAddress
from diptych.router.registry import WorkerLife, WorkerRegistry

Retire = Callable[[PeerAddress, bool], None]
"""Called when a worker may go, with whether a new one shall take its place."""
SETTLE_S = 0.25
"""From a drain's begin until an empty worker goes, where there are other routers: by then what they had placed there
before they heard of it is known."""


@dataclass(frozen=True, slots=True)
class _Drain:
    life: WorkerLife
    begun_s: float
    give_up_s: float
    will_return: bool


class Drains:
    """All drains under way. What a worker has not finished in time goes on elsewhere, as after its death."""

    def __init__(self, registry: WorkerRegistry, clock: Clock, retire: Retire, *, has_fellows: bool = False) -> None:
        """`has_fellows`: other routers place requests on the same workers."""
        self._settle_s = SETTLE_S if has_fellows else 0.0
        self._registry = registry
        self._clock = clock
        self._retire = retire
        self._drains: list[_Drain] = []

    def begin(self, worker_id: WorkerId, timeout_s: float, *, will_return: bool) -> PeerAddress:
        """Give that worker nothing new from now on; return which life of it that is.

        Raises: NotFoundError; UnavailableError if it does not live, or is being drained already.
        """
        life = self._registry.find(worker_id)
        if life is None:
            raise NotFoundError(f"there is no worker {worker_id}; `diptych status` lists them")
        if life.is_over or life.is_draining:
            raise UnavailableError(f"{worker_id} is {'down' if life.is_over else 'being drained'} already")
        self._begin(life, self._clock.now_s() + timeout_s, will_return=will_return)
        self.sweep()
        return life.address

    def _begin(self, life: WorkerLife, give_up_s: float, *, will_return: bool) -> None:
        self._registry.set_draining(life, is_draining=True)
        self._drains.append(_Drain(life, self._clock.now_s(), give_up_s, will_return))

    def under_way(self) -> list[Drain]:
        """Return what other routers are to know."""
        return [
            Drain(one.life.worker_id, one.life.address.incarnation, one.give_up_s, one.will_return)
            for one in self._drains
        ]

    def follow(self, told: Iterable[Drain]) -> None:
        """Carry out what another router has begun too: it may die before it is done."""
        for drain in told:
            life = self._registry.find(drain.worker_id)
            is_meant = life is not None and life.address.incarnation == drain.incarnation
            if life is not None and is_meant and not life.is_over and not life.is_draining:
                self._begin(life, drain.until_s, will_return=drain.will_return)

    def sweep(self) -> None:
        """Let those go that have nothing left to do, or no time."""
        now_s = self._clock.now_s()
        for drain in list(self._drains):
            is_empty = drain.life.ledger.num_requests == 0 and now_s >= drain.begun_s + self._settle_s
            is_done = is_empty or now_s >= drain.give_up_s
            if drain.life.is_over or is_done:
                self._drains.remove(drain)
            if is_done and not drain.life.is_over:
                self._retire(drain.life.address, drain.will_return)
