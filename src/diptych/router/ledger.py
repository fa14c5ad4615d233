"""What routers have sent to a worker and not seen end: the part of its load that no heartbeat can know yet.

A heartbeat is up to half a second old, and in that time one router can send a whole burst to the worker that looked
idle. So the router counts for itself, takes over what the server's other routers count (fellows.py), and uses the
heartbeat only for what is beyond that.

Invariant: every counter is the sum over the entries; releasing twice, or what was never assigned, changes nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from diptych.core.cost_model import count_pairs
from diptych.core.ids import RequestId
from diptych.core.messages import WorkerStatus

OnChange = Callable[[], None]


def _tell_nobody() -> None:
    pass


class Counter:
    """A sum over requests, and what the worker's heartbeat says beyond it."""

    def __init__(self, on_change: OnChange = _tell_nobody) -> None:
        """`on_change`: called whenever its total may be another one."""
        self._on_change = on_change
        self._amounts: dict[RequestId, int] = {}
        self.total = 0
        """What is counted here as of now, plus that of others as of the last report."""
        self._foreign = 0

    def assign(self, request_id: RequestId, amount: int) -> None:
        """Count `amount` for the request, instead of what was counted before."""
        self.total += amount - self._amounts.get(request_id, 0)
        self._amounts[request_id] = amount
        self._on_change()

    def grow(self, request_id: RequestId, amount: int) -> None:
        """Count `amount` more for a request that is counted here."""
        if request_id in self._amounts:
            self._amounts[request_id] += amount
            self.total += amount
            self._on_change()

    def release(self, request_id: RequestId) -> None:
        """Stop counting the request."""
        amount = self._amounts.pop(request_id, None)
        if amount is not None:
            self.total -= amount
            self._on_change()

    def amount(self, request_id: RequestId) -> int:
        """Return what is counted for the request; 0: nothing."""
        return self._amounts.get(request_id, 0)

    def on_report(self, reported: int) -> None:
        """Take what the worker has beyond what is counted here for the work of others, until its next report."""
        foreign = max(reported - self.total + self._foreign, 0)
        if foreign != self._foreign:
            self.total += foreign - self._foreign
            self._foreign = foreign
            self._on_change()

    def __contains__(self, request_id: RequestId) -> bool:
        return request_id in self._amounts

    def __len__(self) -> int:
        return len(self._amounts)

    @property
    def foreign(self) -> int:
        """That of others as of the last report."""
        return self._foreign


@dataclass(frozen=True, slots=True)
class Ledger:
    """The load of one life of a worker. When the life ends, so does its ledger."""

    sequences: Counter
    """Requests whose answers this worker writes."""
    blocks: Counter
    """KV blocks that those requests take besides what was cached, by the router's estimate."""
    context_tokens: Counter
    """Tokens that a step reads for them: cached ones too, and those of a shared prefix for each that shares it. Others'
    are not reported as such."""
    unread: Counter
    """Of `sequences`, those whose prompts have not been read."""
    prefill_tokens: Counter
    """Uncached prompt tokens that this worker has to compute, whoever owns their blocks."""
    prefill_pairs: Counter
    """Of one of those tokens and one that it attends to: what long prompts cost besides their tokens."""

    @classmethod
    def empty(cls, on_change: OnChange = _tell_nobody) -> "Ledger":
        """Return the ledger of a worker that has just come up; `on_change` is called with each change of a counter."""
        return cls(*(Counter(on_change) for _ in range(6)))

    @property
    def _counters(self) -> tuple[Counter, ...]:
        return (
            self.sequences,
            self.blocks,
            self.context_tokens,
            self.unread,
            self.prefill_tokens,
            self.prefill_pairs,
        )

    def amounts(self, request_id: RequestId) -> tuple[int, int, int, int, int, int]:
        """Return what the request counts, in the order of the counters."""
        one, two, three, four, five, six = (counter.amount(request_id) for counter in self._counters)
        return one, two, three, four, five, six

    def set_amounts(self, request_id: RequestId, amounts: Sequence[int]) -> None:
        """Count exactly these for the request, in the same order; of 0 nothing."""
        for counter, amount in zip(self._counters, amounts, strict=True):
            if amount:
                counter.assign(request_id, amount)
            else:
                counter.release(request_id)

    def on_status(self, status: WorkerStatus) -> None:
        """Compare with what the worker says of itself."""
        self.sequences.on_report(status.num_answers)
        self.blocks.on_report(status.num_blocks - status.num_free_blocks - status.num_cached_blocks)
        self.prefill_tokens.on_report(status.queued_prefill_tokens)
        self.prefill_pairs.on_report(status.queued_prefill_pairs)

    def release(self, request_id: RequestId) -> None:
        """Stop counting the request anywhere."""
        self.sequences.release(request_id)
        self.blocks.release(request_id)
        self.context_tokens.release(request_id)
        self.unread.release(request_id)
        self.release_prompt(request_id)

    def assign_prompt(self, request_id: RequestId, num_tokens: int, num_past: int) -> None:
        """Count so many tokens of a prompt, behind `num_past` others, as to be read here."""
        self.prefill_tokens.assign(request_id, num_tokens)
        self.prefill_pairs.assign(request_id, count_pairs(num_tokens, num_past))

    def release_prompt(self, request_id: RequestId) -> None:
        """Count a prompt as read here no longer."""
        self.prefill_tokens.release(request_id)
        self.prefill_pairs.release(request_id)

    @property
    def num_requests(self) -> int:
        """Requests that routers have sent here, for whichever phase, and not seen end."""
        return max(len(self.sequences), len(self.prefill_tokens))
