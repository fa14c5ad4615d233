"""All workers' loads as of now, with columns: what policies ask of all of them at once is a few operations on arrays.

A thousand objects are looked at in a tenth of a millisecond a figure, most of it waiting for memory; a column of a
thousand numbers, in a few microseconds. A router keeps one fleet, and puts in who has changed between two requests.

Invariants: iterating yields the loads in the order in which their workers came; each pool has its loads in places from
0 on without a gap, and column entries of a place say what its load says.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from heapq import nsmallest
from typing import Any, NamedTuple, overload

import numpy as np

from diptych.core.cost_model import CostModel
from diptych.core.ids import NodeId, WorkerId
from diptych.core.messages import Role
from diptych.policy.pairing import CHUNK_TOKENS, WorkerLoad

Column = np.ndarray[Any, np.dtype[np.float64]]
Places = np.ndarray[Any, np.dtype[np.intp]]
FIRST_CAPACITY = 16
NOT_ACCEPTING = -1.0
"""In place of a number of blocks: it can take nothing."""


class Columns(NamedTuple):
    """Figures of a pool's workers, an entry a place; true until the next `put` or `drop`."""

    num_usable_blocks: Column
    """How many blocks it has for those that it takes on; `NOT_ACCEPTING`: it takes nobody on."""
    num_used_blocks: Column
    num_queued_tokens: Column
    num_sequences: Column
    """Answers that it writes, or will write."""
    queue_s: Column
    """How long what is queued takes it, roughly: at a long prompt's price a token."""
    node_number: Column
    """Which machine it is on; equal where the machines are."""


class Pool:
    """Workers of a kind of role, each in a place. Owned by its fleet."""

    def __init__(self) -> None:
        self.loads: list[WorkerLoad] = []
        """By place."""
        self._place_of: dict[WorkerId, int] = {}
        self._token_s: list[float] = []
        """Of a long queue, by place."""
        self._nodes: dict[NodeId, float] = {}
        # An entry is written ten times as fast into a plain array; columns are of the same memory.
        self._entries = [array("d", bytes(8 * FIRST_CAPACITY)) for _ in Columns._fields]
        self._columns: Columns | None = None
        """None: workers have come or gone since it was made."""

    @property
    def columns(self) -> Columns:
        """Figures of all."""
        if self._columns is None:
            self._columns = Columns(*(np.frombuffer(entries)[: len(self.loads)] for entries in self._entries))
        return self._columns

    def places_of(self, worker_ids: Iterable[WorkerId]) -> dict[int, WorkerId]:
        """Return where those workers are that are here, and which."""
        place_of = self._place_of
        return {place_of[worker_id]: worker_id for worker_id in worker_ids if worker_id in place_of}

    # Who is in it

    def put(self, load: WorkerLoad) -> None:
        """Take the newest load of a worker."""
        place = self._place_of.get(load.worker_id)
        if place is None:
            place = self._place_of[load.worker_id] = len(self.loads)
            self.loads.append(load)
            self._token_s.append(_token_s(load.costs))
            self._columns = None
            if place == len(self._entries[0]):
                self._entries = [entries + entries for entries in self._entries]
        elif load.costs is not self.loads[place].costs:
            self._token_s[place] = _token_s(load.costs)
        self.loads[place] = load
        queued_s = load.num_queued_tokens * self._token_s[place] + load.num_queued_pairs * load.costs.pair_s
        usable, used, queued, sequences, queue_s, node = self._entries
        usable[place] = load.num_blocks if load.is_accepting else NOT_ACCEPTING
        used[place] = load.num_used_blocks
        queued[place] = load.num_queued_tokens
        sequences[place] = load.num_answers + load.num_unread
        queue_s[place] = queued_s * load.cost_scale
        node[place] = self._nodes.setdefault(load.node, float(len(self._nodes)))

    def drop(self, worker_id: WorkerId) -> None:
        """Forget a worker, if it is here: the last one takes its place."""
        place = self._place_of.pop(worker_id, None)
        if place is None:
            return
        self._columns = None
        last, last_token_s = self.loads.pop(), self._token_s.pop()
        if last.worker_id != worker_id:
            self.loads[place], self._token_s[place] = last, last_token_s
            self._place_of[last.worker_id] = place
            for entries in self._entries:
                entries[place] = entries[len(self.loads)]

    # What is asked of all

    def able(self, num_blocks: int = 0) -> Places:
        """Return the places of those that take on whoever needs so many blocks."""
        places: Places = np.flatnonzero(self.columns.num_usable_blocks >= num_blocks)
        return places

    def at(self, places: Places) -> list[WorkerLoad]:
        """Return the loads in these places."""
        loads = self.loads
        return [loads[place] for place in places.tolist()]

    def cheapest(self, places: Places, prices: Column, number: int) -> list[WorkerLoad]:
        """Return who has the lowest of `prices` (one for each of `places`), the lowest first, ties by id."""
        if len(places) > number:
            most = prices.min() if number == 1 else np.partition(prices, number - 1)[number - 1]
            is_few = prices <= most
            places, prices = places[is_few], prices[is_few]
        loads = self.at(places)
        if len(loads) <= 1:
            return loads
        priced = zip(prices.tolist(), [load.worker_id for load in loads], loads, strict=True)
        return [load for _, _, load in (sorted(priced) if len(loads) <= number else nsmallest(number, priced))]

    def shortest_queues(self, number: int) -> list[WorkerLoad]:
        """Return so many of each machine that will be done first with what is queued there, answers not counted."""
        places = self.able()
        if len(self._nodes) == 1:
            return self.cheapest(places, self.columns.queue_s[places], number)
        nodes = self.columns.node_number[places]
        return [
            load
            for node in dict.fromkeys(nodes.tolist())
            for own in [places[nodes == node]]
            for load in self.cheapest(own, self.columns.queue_s[own], number)
        ]


def _token_s(costs: CostModel) -> float:
    return costs.prefill_s(CHUNK_TOKENS, 0, CHUNK_TOKENS) / CHUNK_TOKENS


class Fleet(Sequence[WorkerLoad]):
    """All loads, and two pools of them: prefill workers, and those that write answers."""

    def __init__(self) -> None:
        self._loads: dict[WorkerId, WorkerLoad] = {}
        self.readers = Pool()
        """Prefill workers."""
        self.writers = Pool()
        """All others."""

    @classmethod
    def of(cls, loads: Sequence[WorkerLoad]) -> "Fleet":
        """Return loads as a fleet: themselves, where they are one."""
        if isinstance(loads, cls):
            return loads
        fleet = cls()
        for load in loads:
            fleet.put(load)
        return fleet

    def put(self, load: WorkerLoad) -> None:
        """Take the newest load of a worker."""
        known = self._loads.get(load.worker_id)
        if known is not None and known.role is not load.role:
            self._pool_of(known).drop(load.worker_id)
        self._loads[load.worker_id] = load
        self._pool_of(load).put(load)

    def drop(self, worker_id: WorkerId) -> None:
        """Forget a worker, if it is here."""
        load = self._loads.pop(worker_id, None)
        if load is not None:
            self._pool_of(load).drop(worker_id)

    def _pool_of(self, load: WorkerLoad) -> Pool:
        return self.readers if load.role is Role.PREFILL else self.writers

    def __len__(self) -> int:
        return len(self._loads)

    def __iter__(self) -> Iterator[WorkerLoad]:
        return iter(self._loads.values())

    @overload
    def __getitem__(self, index: int) -> WorkerLoad: ...
    @overload
    def __getitem__(self, index: slice) -> list[WorkerLoad]: ...
    def __getitem__(self, index: int | slice) -> WorkerLoad | list[WorkerLoad]:
        """Return loads in their order; O(all of them)."""
        return list(self._loads.values())[index]
