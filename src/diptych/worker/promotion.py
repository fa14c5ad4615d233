"""Blocks on their way up: what a request's prompt begins with, and only the tier below still has.

A sequence that has got its blocks waits here while the tier fills the first of them, if that is predicted to be sooner
than computing them; everybody else goes on meanwhile. Then what has been loaded is committed and findable as if it had
been computed, and the rest is computed, here or by a prefill worker that is granted the blocks only now.

Invariants: nobody else gets a block that the tier may still touch, even if its sequence has ended; no sequence waits
for longer than `policy.promotion.load_patience_s` says, unless the tier cannot be stopped.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from diptych.core.clock import Clock
from diptych.core.cost_model import CostModel
from diptych.core.ids import BlockId
from diptych.policy.promotion import is_worth_loading, load_patience_s
from diptych.tiers.base import BlockTier, Loading, Target
from diptych.worker.load import Speed
from diptych.worker.memory import WorkerMemory
from diptych.worker.sequence import Sequence
from diptych.worker.sequence_blocks import SequenceBlocks


class Promoted(NamedTuple):
    """A sequence whose loading is over."""

    sequence: Sequence
    num_tokens: int
    """That were loaded; committed and findable."""


@dataclass(slots=True, eq=False)
class _Promotion:
    """A loading and whose it is."""

    loading: Loading
    sequence: Sequence
    give_up_s: float
    has_given_up: bool = False


class Promotions:
    """All loadings of one worker. Owned by its loop."""

    def __init__(  # noqa: PLR0913, PLR0917  the parts that it is made of
        self,
        tier: BlockTier,
        blocks: SequenceBlocks,
        memory: WorkerMemory,
        costs: CostModel,
        speed: Speed,
        chunk_tokens: int,
        clock: Clock,
    ) -> None:
        self._tier = tier
        self._blocks = blocks
        self._memory = memory
        self._costs = costs
        self._speed = speed
        self._chunk_tokens = chunk_tokens
        self._clock = clock
        self._running: list[_Promotion] = []
        self._abandoned: list[tuple[Loading, list[BlockId]]] = []
        self.num_declined = 0
        """Sequences of which the tier had blocks, and computing was predicted to be sooner."""

    def next_s(self) -> float:
        """Return when `take_ended` is due at the latest."""
        return min((one.give_up_s for one in self._running if not one.has_given_up), default=math.inf)

    def try_begin(self, sequence: Sequence) -> int | None:
        """Have the tier fill the first uncomputed blocks of `sequence`; return of how many tokens.

        None if there is nothing to wait for.
        """
        loadable = self._blocks.loadable(sequence)
        num_hit = self._tier.num_leading_blocks([block_hash for block_hash, _ in loadable])
        if not num_hit:
            return None
        num_tokens = num_hit * self._blocks.block_size
        compute_s = self._costs.prefill_s(num_tokens, sequence.num_computed_tokens, self._chunk_tokens)
        compute_s *= self._speed.cost_scale
        if not is_worth_loading(self._tier.predict_load_s(num_hit), compute_s):
            self.num_declined += 1
            return None
        targets = [Target(block_hash, self._memory.parts(block_id)) for block_hash, block_id in loadable[:num_hit]]
        give_up_s = self._clock.now_s() + load_patience_s(compute_s)
        self._running.append(_Promotion(self._tier.load(targets), sequence, give_up_s))
        return num_tokens

    def take_ended(self) -> list[Promoted]:
        """Return the sequences that need not wait any more, in the order in which they began to."""
        self._free_abandoned()
        now_s = self._clock.now_s()
        for one in self._running:
            if now_s >= one.give_up_s and not one.has_given_up:
                one.has_given_up = True
                one.loading.give_up()
        ended = [one for one in self._running if one.loading.is_over]  # asked once: it may be so a moment later
        self._running = [one for one in self._running if one not in ended]
        promoted = [Promoted(one.sequence, one.loading.num_loaded * self._blocks.block_size) for one in ended]
        for every in promoted:
            self._take(every)
        return promoted

    def _take(self, promoted: Promoted) -> None:
        sequence, num_tokens = promoted
        if num_tokens:
            first, size = sequence.num_computed_tokens // self._blocks.block_size, self._blocks.block_size
            loaded = sequence.block_table[first : first + num_tokens // size]
            self._memory.vouch_for(loaded, sequence.epoch)  # the tier has compared them with what was stored
            self._blocks.on_computed([(sequence, num_tokens)])

    def abandon(self, sequence: Sequence) -> None:
        """Take the blocks from a sequence that has ended, and free them once the tier does not touch them."""
        (promotion,) = [one for one in self._running if one.sequence is sequence]
        self._running.remove(promotion)
        promotion.loading.cancel()
        self._abandoned.append((promotion.loading, sequence.block_table))
        sequence.block_table = []
        self._free_abandoned()

    def _free_abandoned(self) -> None:
        waiting, self._abandoned = self._abandoned, []
        for loading, block_ids in waiting:
            if loading.is_over:
                self._blocks.cache.release(block_ids)
            else:
                self._abandoned.append((loading, block_ids))
