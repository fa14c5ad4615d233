"""Which cached block goes when a worker needs room: by recency alone, or by recency and reuse. Clockless.

Most prompts never come back, so most blocks of a cache in LRU order wait there in vain, and each long one-off pushes
out chats that are going on. A block that has come back once comes back again twice as often at any age (measured on
Mooncake's conversation trace, `benchmarks/eviction.py`), so it may wait longer. Until when, the order learns: beyond
the longest idle time after which reused blocks came back of late, having been reused is worth nothing any more.

Time is counted in blocks stored: what a block's stay costs is the blocks that find no room meanwhile.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping

from diptych.core.control import EvictionName
from diptych.core.ids import BlockHash
from diptych.kv.eviction_order import EvictionOrder, LeastRecentlyUsed

WORTH = (1, 2, 3, 4)
"""How much longer than a new block one may be idle that has been reused 0, 1, 2, 3 and more times."""
ONE_MORE = (1, 2, 3, 3)
"""The place in it after one more return."""
FORGETTING = 1 / 5_000
"""By how much of its distance the horizon comes closer to the idle time of each block that returns sooner."""


class ReuseAware:
    """An order in which idle time counts less for blocks that have come back; they age too, and in the end they go.

    Blocks are in queues by how often they have come back, oldest first; the victim is the oldest of one of them, the
    one with the most idle time for its worth. So each operation takes constant time. Evicted blocks are remembered, as
    many as the cache holds: one that is computed again soon has come back, though it was not found.

    A long prompt that is read once stays in the first queue and leaves it from its tail on, whatever the other queues
    hold: scans do not push out what is in use. Heads of chains have come back at least as often as their tails and
    were used at least as late, so a chain goes from its tail on.

    See: O'Neil et al., LRU-K (SIGMOD 1993) and Johnson and Shasha, 2Q (VLDB 1994) for queues by reuse and for
    remembering what was evicted; Beckmann et al., LHD (NSDI 2018) for ranking by the chance of a hit at an age. We rank
    only the oldest block of each queue, and learn one number, the horizon, instead of a distribution.
    """

    def __init__(self, num_blocks: int) -> None:
        """Make the order of a cache of `num_blocks`."""
        self._num_remembered = num_blocks
        self._queues: tuple[OrderedDict[BlockHash, int], ...] = tuple(OrderedDict() for _ in WORTH)
        """Idle blocks by number of returns, and when they became idle."""
        self._num_returns: dict[BlockHash, int] = {}
        """Of every findable block, at most the last index of `WORTH`."""
        self._gone: OrderedDict[BlockHash, tuple[int, int]] = OrderedDict()
        """Evicted blocks, first the first to go: number of returns, and when they became idle."""
        self._now = 0
        """Blocks stored so far."""
        self._horizon = 0.0

    def __len__(self) -> int:
        return sum(map(len, self._queues))

    def __contains__(self, block_hash: BlockHash) -> bool:
        num_returns = self._num_returns.get(block_hash)
        return num_returns is not None and block_hash in self._queues[num_returns]

    def __iter__(self) -> Iterator[BlockHash]:
        idle = [(number, *one) for number, queue in enumerate(self._queues) for one in queue.items()]
        idle.sort(key=lambda one: (-self._weight(one[0], one[2]), one[0]))  # stable: each queue stays in its order
        return (block_hash for _, block_hash, _ in idle)

    def on_stored(self, block_hash: BlockHash) -> None:
        """Start with a block; if it was evicted not long ago it has come back."""
        self._now += 1
        gone = self._gone.pop(block_hash, None)
        if gone is None:
            self._num_returns[block_hash] = 0
        else:
            self._learn(*gone)
            self._num_returns[block_hash] = ONE_MORE[gone[0]]

    def on_hit(self, block_hash: BlockHash) -> None:
        """Count a return, and take the block out if it was idle."""
        num_returns = self._num_returns[block_hash]
        idle_since = self._queues[num_returns].pop(block_hash, None)
        if idle_since is not None:
            self._learn(num_returns, idle_since)
        self._num_returns[block_hash] = ONE_MORE[num_returns]

    def on_idle(self, block_hash: BlockHash) -> None:
        """Put it behind all that have come back as often."""
        self._queues[self._num_returns[block_hash]][block_hash] = self._now

    def pop_victim(self) -> BlockHash:
        """Remove and return the block with the most idle time for its worth; in a tie, one that came back less often.

        Raises: KeyError if none is idle.
        """
        victims, most = None, -1.0
        for number, queue in enumerate(self._queues):
            if queue:
                weight = self._weight(number, next(iter(queue.values())))
                if weight > most:
                    victims, most = queue, weight
        if victims is None:
            raise KeyError("no block is idle")
        block_hash, idle_since = victims.popitem(last=False)
        self._remember(block_hash, idle_since)
        return block_hash

    def on_lost(self, block_hash: BlockHash) -> None:
        """Remember it like one that was evicted, or it would count for less than what follows it when both return."""
        idle_since = self._queues[self._num_returns[block_hash]].pop(block_hash, self._now)
        self._remember(block_hash, idle_since)

    def _remember(self, block_hash: BlockHash, idle_since: int) -> None:
        self._gone[block_hash] = (self._num_returns.pop(block_hash), idle_since)
        if len(self._gone) > self._num_remembered:
            self._gone.popitem(last=False)

    def _weight(self, num_returns: int, idle_since: int) -> float:
        """Return for how long a block has been idle, in multiples of what it is worth."""
        idle = self._now - idle_since
        return idle if idle >= self._horizon else idle / WORTH[num_returns]

    def _learn(self, num_returns: int, idle_since: int) -> None:
        """Move the horizon: out to the idle time of a reused block that has come back, or a little closer to it."""
        idle = self._now - idle_since
        if num_returns and idle:
            self._horizon = max(idle, self._horizon - FORGETTING * (self._horizon - idle))


_ORDERS: Mapping[EvictionName, Callable[[int], EvictionOrder]] = {
    "lru": lambda _num_blocks: LeastRecentlyUsed(),
    "reuse-aware": ReuseAware,
}


def make_order(name: EvictionName, num_blocks: int) -> EvictionOrder:
    """Return the order called `name` for a cache of `num_blocks`."""
    return _ORDERS[name](num_blocks)
