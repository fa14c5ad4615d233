"""What a routing policy is asked, and what it answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from diptych.core.ids import WorkerId
from diptych.core.slo import Slo
from diptych.policy.nodes import Reading
from diptych.policy.pairing import Pair, WorkerLoad


@dataclass(frozen=True, slots=True)
class Question:
    """A request that needs workers."""

    num_prompt_tokens: int
    matched_tokens: Mapping[WorkerId, int]
    """Of the prompt's beginning, in each worker's prefix cache, in whole blocks. Who is absent has none."""
    num_answer_tokens: float
    """Expected, of all its answers together."""
    num_most_tokens: int
    """Of prompt and answer; a worker with fewer blocks could never end the answer."""

    def num_cached(self, worker_id: WorkerId) -> int:
        """Return how many of the prompt's tokens need not be computed there: the last one always must be."""
        return min(self.matched_tokens.get(worker_id, 0), self.num_prompt_tokens - 1)


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for all requests of a server."""

    slo: Slo
    block_size: int
    local_prefill_max_tokens: int
    """A prompt of which no more than this is uncached is read by its owner."""
    balancing_threshold: float = 2.0
    """How many times as long another worker's prefix must be for it to be copied."""
    temperature: float = 0.0
    """Of `overlap-load`: how evenly it draws among workers of unequal cost; 0: always the cheapest."""


class Copy(NamedTuple):
    """Blocks to copy from another worker's cache before the rest of the prompt is read."""

    source: WorkerId
    num_blocks: int
    """Of the prompt's first full blocks; those that the owner has itself included, which need no copy."""
    copy_s: float
    """Predicted."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes."""

    owner: WorkerId
    reader: WorkerId
    """May be the owner."""
    reading: Reading
    """What the reader does."""
    predict: Callable[[], Pair] = field(compare=False)
    """Says what is predicted of the two; only admission by forecast asks."""
    copy: Copy | None = None

    @classmethod
    def of(cls, pair: Pair, copy: Copy | None = None) -> "Route":
        """Return the route by a pair that was chosen for what is predicted of it."""
        return cls(pair.owner, pair.reader, pair.reading, lambda: pair, copy)

    @property
    def pair(self) -> Pair:
        """Owner, reader, and what is predicted of them."""
        return self.predict()


class Chance(Protocol):
    """A seeded source of chance, such as `random.Random(seed)`."""

    def random(self) -> float:
        """Return the next number, at least 0 and below 1."""
        ...


class RoutingPolicy(Protocol):
    """Chooses for one request. Keeps nothing: what a policy remembers or draws is passed in."""

    def __call__(
        self, question: Question, loads: Sequence[WorkerLoad], rules: Rules, turn: int, chance: Chance
    ) -> Route | None:
        """Return where the request goes; None: nobody can take it now.

        `turn` counts the decisions of whoever asks, from 0.
        """
        ...
