"""KV on its way from a prompt's reader to the owner on another machine, and what such transfers do to each other.

Each machine has a port that sends and receives at the same speed, at once. Transfers share a port evenly; one goes as
fast as the slower of its two ports lets it (what it leaves of the other is not given to others, so contention is rather
over- than underestimated). A prompt's transfer begins with its first chunk, gets more with each one, and is over when
all has arrived.

See: DistServe (OSDI 2024, section 3.3) for why bandwidth between phases matters, Mooncake (FAST 2025) for sending what
is ready while the rest is computed.
"""

import heapq
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

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
    end_bytes: float | None = None
    """When its lane has sent so much of each transfer, all that it has got is sent; None: nothing is left to send."""
    is_complete: bool = False
    """Whether all of the prompt has been given to it."""


@dataclass(slots=True)
class _Lane:
    """From one machine to another: its transfers all go at one speed, so a single sum tells how far each of them is."""

    each_bytes: float = 0.0
    """Sent of each transfer that has been under way since the lane was empty."""
    rate_bytes_per_s: float = 0.0
    """Of each."""
    updated_s: float = 0.0
    num_transfers: int = 0
    ends: list[tuple[float, int, Transfer]] = field(default_factory=list)
    """A heap. What is not its transfer's end any more is passed over."""
    version: int = 0
    """Of the moment at which the next of them is thought to be done."""

    def settle(self, now_s: float) -> None:
        """Add what has been sent until now."""
        self.each_bytes += (now_s - self.updated_s) * self.rate_bytes_per_s
        self.updated_s = now_s

    def next_end(self) -> Transfer | None:
        """Return the transfer that will be done first; None: there is none."""
        while self.ends and self.ends[0][0] != self.ends[0][2].end_bytes:
            heapq.heappop(self.ends)
        return self.ends[0][2] if self.ends else None


@dataclass(slots=True)
class _Port:
    lanes: dict[str, _Lane] = field(default_factory=lambda: defaultdict(_Lane))
    """By the machine at the other end."""
    num_transfers: int = 0


class Links:
    """All ports and transfers. Owned by the simulation.

    Whatever begins or ends costs as much as there are machines at the other ends of two ports, however many transfers.
    """

    def __init__(self, plan: LinkPlan, time: VirtualTime) -> None:
        self._plan = plan
        self._time = time
        self._leaving: dict[str, _Port] = defaultdict(_Port)
        self._arriving: dict[str, _Port] = defaultdict(_Port)
        self._numbers = count()
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
        lane = self._lane(transfer)
        lane.settle(self._time.now_s())
        if transfer.end_bytes is None:
            transfer.end_bytes = lane.each_bytes
            self._count(transfer, 1)
        transfer.end_bytes += num_bytes
        heapq.heappush(lane.ends, (transfer.end_bytes, next(self._numbers), transfer))
        self._share(transfer)

    def cancel(self, transfer: Transfer) -> None:
        """Forget a transfer: one of its ends is dead."""
        transfer.is_complete = False
        if transfer.end_bytes is not None:
            self._stop(transfer)

    def _lane(self, transfer: Transfer) -> _Lane:
        lane = self._leaving[transfer.source].lanes[transfer.target]
        self._arriving[transfer.target].lanes[transfer.source] = lane
        return lane

    def _count(self, transfer: Transfer, change: int) -> None:
        self._lane(transfer).num_transfers += change
        self._leaving[transfer.source].num_transfers += change
        self._arriving[transfer.target].num_transfers += change

    def _stop(self, transfer: Transfer) -> None:
        transfer.end_bytes = None
        self._count(transfer, -1)
        self._share(transfer)

    def _share(self, changed: Transfer) -> None:
        """Work out anew how fast everybody goes at the two ports of a transfer that has begun, grown or ended."""
        leaving, arriving = self._leaving[changed.source], self._arriving[changed.target]
        for target, lane in leaving.lanes.items():
            self._pace(lane, leaving, self._arriving[target], is_changed=target == changed.target)
        for source, lane in arriving.lanes.items():
            if source != changed.source:
                self._pace(lane, self._leaving[source], arriving, is_changed=False)

    def _pace(self, lane: _Lane, leaving: _Port, arriving: _Port, *, is_changed: bool) -> None:
        if not lane.num_transfers:
            if is_changed:  # what rounding has left over does not add up
                lane.version += 1
                lane.each_bytes = lane.rate_bytes_per_s = 0.0
                lane.ends.clear()
            return
        rate = self._plan.bytes_per_s / max(leaving.num_transfers, arriving.num_transfers)
        if is_changed or rate != lane.rate_bytes_per_s:
            lane.settle(self._time.now_s())
            lane.rate_bytes_per_s = rate
            self._expect_end(lane)

    def _expect_end(self, lane: _Lane) -> None:
        transfer = lane.next_end()
        assert transfer is not None and transfer.end_bytes is not None
        lane.version += 1
        version = lane.version

        def on_time() -> None:
            if lane.version == version:
                self._on_sent(transfer)

        self._time.call_in(max(transfer.end_bytes - lane.each_bytes, 0.0) / lane.rate_bytes_per_s, on_time)

    def _on_sent(self, transfer: Transfer) -> None:
        self._stop(transfer)
        if transfer.is_complete:
            self._time.call_in(self._plan.latency_s, transfer.on_arrival)
