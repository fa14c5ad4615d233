"""KV on its way from a prompt's reader to the owner on another machine, and what such transfers do to each other.

Each machine has a port that sends and receives at the same speed, at once. Transfers share a port evenly; one goes as
fast as the slower of its two ports lets it (what it leaves of the other is not given to others, so contention is rather
over- than underestimated). A prompt's transfer begins with its first chunk, gets more with each one, and is over when
all has arrived.

See: DistServe (OSDI 2024, section 3.3) for why bandwidth between phases matters, Mooncake (FAST 2025) for sending what
is ready while the rest is computed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from diptych.sim.clock import VirtualTime
from diptych.sim.plan import LinkPlan


@dataclass(slots=True, eq=False)
class Transfer:
    """One prompt's KV. Compared by identity."""

    source: str
    target: str
    """Machines."""
    on_arrival: Callable[[], None]
    """Called when all has arrived."""
    left_bytes: float = 0.0
    is_complete: bool = False
    """Whether all of the prompt has been given to it."""
    rate_bytes_per_s: float = 0.0
    updated_s: float = 0.0
    version: int = 0
    """Of the moment at which it is thought to be done."""


@dataclass(slots=True)
class _Port:
    leaving: dict[Transfer, None] = field(default_factory=dict)
    arriving: dict[Transfer, None] = field(default_factory=dict)


class Links:
    """All ports and transfers. Owned by the simulation."""

    def __init__(self, plan: LinkPlan, time: VirtualTime) -> None:
        self._plan = plan
        self._time = time
        self._ports: dict[str, _Port] = {}
        self.does_overlap = plan.does_overlap
        self.sent_bytes = 0.0
        """Since the beginning."""

    def open(self, source: str, target: str, on_arrival: Callable[[], None]) -> Transfer:
        """Begin a prompt's transfer between two machines, with nothing to send yet."""
        return Transfer(source, target, on_arrival)

    def send(self, transfer: Transfer, num_tokens: int, *, is_last: bool) -> None:
        """Give a transfer the KV of so many tokens more."""
        num_bytes = num_tokens * self._plan.kv_bytes_per_token
        self.sent_bytes += num_bytes
        transfer.is_complete |= is_last
        was_idle = transfer not in self._port(transfer.source).leaving
        if was_idle:
            transfer.updated_s = self._time.now_s()
            self._port(transfer.source).leaving[transfer] = None
            self._port(transfer.target).arriving[transfer] = None
        self._settle(transfer)
        transfer.left_bytes += num_bytes
        self._share(transfer)

    def cancel(self, transfer: Transfer) -> None:
        """Forget a transfer: one of its ends is dead."""
        transfer.is_complete = False
        self._stop(transfer)

    def _port(self, machine: str) -> _Port:
        return self._ports.setdefault(machine, _Port())

    def _stop(self, transfer: Transfer) -> None:
        transfer.version += 1
        self._port(transfer.source).leaving.pop(transfer, None)
        self._port(transfer.target).arriving.pop(transfer, None)
        self._share(transfer)

    def _settle(self, transfer: Transfer) -> None:
        now_s = self._time.now_s()
        passed_s = now_s - transfer.updated_s
        transfer.left_bytes = max(transfer.left_bytes - passed_s * transfer.rate_bytes_per_s, 0.0)
        transfer.updated_s = now_s

    def _share(self, changed: Transfer) -> None:
        """Work out anew how fast everybody goes at the two ports of a transfer that has begun, grown or ended."""
        concerned = {**self._port(changed.source).leaving, **self._port(changed.target).arriving}
        for transfer in concerned:
            num_leaving = len(self._port(transfer.source).leaving)
            num_arriving = len(self._port(transfer.target).arriving)
            rate = self._plan.bytes_per_s / max(num_leaving, num_arriving)
            if rate != transfer.rate_bytes_per_s or transfer is changed:
                self._settle(transfer)
                transfer.rate_bytes_per_s = rate
                self._expect_end(transfer)

    def _expect_end(self, transfer: Transfer) -> None:
        transfer.version += 1
        version = transfer.version

        def on_time() -> None:
            if transfer.version == version:
                self._on_sent(transfer)

        self._time.call_in(transfer.left_bytes / transfer.rate_bytes_per_s, on_time)

    def _on_sent(self, transfer: Transfer) -> None:
        transfer.left_bytes = 0.0
        transfer.rate_bytes_per_s = 0.0
        self._stop(transfer)
        if transfer.is_complete:
            self._time.call_in(self._plan.latency_s, transfer.on_arrival)
