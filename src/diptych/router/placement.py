"""Where a request goes: asks the routing policy over the registry and the prefix index, and keeps the ledgers.

Step 2 of a request's life. Invariant: what `Placement.assign` adds to ledgers, `Placement.release` takes away, whatever
happened in between.
"""

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass

from diptych.core.ids import BlockHash, RequestId
from diptych.core.messages import CopyOrder, PeerAddress
from diptych.core.slo import Slo
from diptych.policy.nodes import Reading
from diptych.policy.pairing import Pair
from diptych.policy.routing.by_name import POLICIES
from diptych.policy.routing.fleet import Fleet
from diptych.policy.routing.question import Question, Route, Rules
from diptych.router.prefix_index import PrefixIndex
from diptych.router.registry import WorkerLife, WorkerRegistry
from diptych.router.settings import RouterSettings

OnChange = Callable[[RequestId, WorkerLife], None]
"""Called when what a request counts on a worker may have changed."""


def tell_nobody(request_id: RequestId, life: WorkerLife) -> None:
    """Where there is no other router."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The workers of one attempt at a request."""

    decode: WorkerLife
    prefill: WorkerLife | None
    """None: the decode worker reads the prompt itself."""
    num_prompt_tokens: int
    num_uncached_tokens: int
    """Of the prompt, at the decode worker, as far as the router knows; at least 1. What is to be copied is not counted.
    """
    num_new_blocks: int
    """Blocks that the prompt takes besides those in the decode worker's prefix cache."""
    reading: Reading
    """What the reader does with the prompt."""
    forecast: Callable[[], Pair]
    """Says what is predicted, as of the moment at which these were chosen."""
    copy: CopyOrder | None = None
    """What the decode worker is to copy from another's cache first."""
    on_change: OnChange = tell_nobody

    def assign(self, request_id: RequestId, num_choices: int = 1) -> None:
        """Count the request as load of its workers."""
        self.decode.ledger.sequences.assign(request_id, num_choices)
        self.decode.ledger.unread.assign(request_id, num_choices)
        self.decode.ledger.blocks.assign(request_id, self.num_new_blocks)
        self.decode.ledger.context_tokens.assign(request_id, num_choices * self.num_prompt_tokens)
        if self.prefill is None:
            self._assign_to_owner(request_id)
        else:
            self.prefill.ledger.assign_prompt(request_id, self.reading.num_tokens, self.reading.num_past)
        self._tell(request_id)

    def _tell(self, request_id: RequestId) -> None:
        self.on_change(request_id, self.decode)
        if self.prefill is not None:
            self.on_change(request_id, self.prefill)

    def on_tokens(self, request_id: RequestId) -> None:
        """Take note of tokens of the answer: they say that the prompt has been read."""
        if request_id in self.decode.ledger.unread:
            self.on_prefilled(request_id)

    def on_blocks_full(self, request_id: RequestId, num_blocks: int, block_size: int) -> None:
        """Count so many blocks more: the answer has outgrown the last one."""
        self.decode.ledger.blocks.grow(request_id, num_blocks)
        self.decode.ledger.context_tokens.grow(request_id, num_blocks * block_size)
        self.on_change(request_id, self.decode)

    def on_prefill_gone(self, request_id: RequestId) -> None:
        """Count the prompt as the decode worker's own: it reads it itself after its prefill worker's death."""
        self._assign_to_owner(request_id)
        self._tell(request_id)

    def _assign_to_owner(self, request_id: RequestId) -> None:
        num_cached_tokens = self.num_prompt_tokens - self.num_uncached_tokens
        self.decode.ledger.assign_prompt(request_id, self.num_uncached_tokens, num_cached_tokens)

    def on_found(self, request_id: RequestId, num_tokens: int) -> None:
        """Count only what is behind so many tokens of a prompt as to be read; no change if it has been read."""
        ledger = (self.prefill or self.decode).ledger
        if request_id in ledger.prefill_tokens:
            num_left = max(self.num_prompt_tokens - num_tokens, 1)
            if self.prefill is not None and self.prefill.address.node != self.decode.address.node:
                num_left = min(num_left, self.reading.num_tokens)  # it may have more of it itself
            ledger.assign_prompt(request_id, num_left, self.num_prompt_tokens - num_left)
            self._tell(request_id)

    def on_prefilled(self, request_id: RequestId) -> None:
        """Count the prompt as read."""
        self.decode.ledger.unread.release(request_id)
        self.decode.ledger.release_prompt(request_id)
        if self.prefill is not None:
            self.prefill.ledger.release_prompt(request_id)
        self._tell(request_id)

    def release(self, request_id: RequestId) -> None:
        """Stop counting the request anywhere."""
        self.decode.ledger.release(request_id)
        if self.prefill is not None:
            self.prefill.ledger.release(request_id)
        self._tell(request_id)


class Placer:
    """Turns a prompt into a placement. Keeps what its policy remembers: how many decisions there were, and chance."""

    def __init__(
        self,
        registry: WorkerRegistry,
        prefixes: PrefixIndex,
        block_size: int,
        settings: RouterSettings,
        on_change: OnChange = tell_nobody,
    ) -> None:
        """`on_change`: hears of all changes of what is counted for placed requests."""
        self._on_change = on_change
        self._registry = registry
        self._prefixes = prefixes
        self._block_size = block_size
        self._policy = POLICIES[settings.routing]
        self._rules = Rules(
            slo=Slo(settings.slo_ttft_s, settings.slo_tpot_s),
            block_size=block_size,
            local_prefill_max_tokens=settings.local_prefill_max_tokens,
            balancing_threshold=settings.balancing_threshold,
            temperature=settings.routing_temperature,
        )
        self._turn = 0
        self._chance = random.Random(settings.routing_seed)  # noqa: S311  no secret

    @property
    def is_anyone_coming(self) -> bool:
        """Whether a worker that does not take requests now is expected to, soon."""
        return self._registry.is_anyone_coming

    def try_place(
        self,
        num_prompt_tokens: int,
        hashes: list[BlockHash],
        excluded: Collection[PeerAddress],
        num_answer_tokens: float,
        num_most_tokens: int,
    ) -> Placement | None:
        """Choose workers for a prompt; None if no worker outside `excluded` takes requests now.

        `num_answer_tokens`: how long an answer is expected. `num_most_tokens`: of prompt and answer, if it is longer.
        """
        matched_blocks = self._prefixes.match_blocks(hashes)
        matched_tokens = {worker_id: count * self._block_size for worker_id, count in matched_blocks.items()}
        question = Question(num_prompt_tokens, matched_tokens, num_answer_tokens, num_most_tokens)
        loads = self._registry.worker_loads(self._block_size)
        if excluded:
            loads = Fleet.of([load for load in loads if self._registry.life(load.worker_id).address not in excluded])
        route = self._policy(question, loads, self._rules, self._turn, self._chance)
        if route is None:
            return None
        self._turn += 1
        return self._placement(num_prompt_tokens, matched_blocks.get(route.owner, 0), route)

    def _placement(self, num_prompt_tokens: int, num_matched_blocks: int, route: Route) -> Placement:
        copy = route.copy
        num_cached_blocks = num_matched_blocks if copy is None else copy.num_blocks
        return Placement(
            decode=self._registry.life(route.owner),
            prefill=None if route.reader == route.owner else self._registry.life(route.reader),
            num_prompt_tokens=num_prompt_tokens,
            # The last prompt token is always computed: its logits are the first token.
            num_uncached_tokens=max(num_prompt_tokens - num_cached_blocks * self._block_size, 1),
            num_new_blocks=-(-num_prompt_tokens // self._block_size) - num_matched_blocks,
            reading=route.reading,
            forecast=route.predict,
            copy=None if copy is None else CopyOrder(copy.num_blocks, self._registry.life(copy.source).address),
            on_change=self._on_change,
        )
