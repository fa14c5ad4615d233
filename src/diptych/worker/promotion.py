"""Blocks on their way up: what a request's prompt begins with, and only the tiers below still have.

A sequence that has got its blocks waits here while tiers fill the first of them, if that is predicted to be sooner than
computing them; everybody else goes on meanwhile. Before that it may wait for a tier that must find out what it has:
for a moment, and only if loading the whole prompt were worth it. Then what has been loaded is committed and findable as
if it had been computed, and the rest is computed, here or by a prefill worker that is granted the blocks only now.

Invariants: nobody else gets a block that a tier may still touch, even if its sequence has ended; no sequence waits for
longer than `policy.promotion` says, unless a tier cannot be stopped.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from diptych.core.cache_status import TierKind
from diptych.core.clock import Clock
from diptych.core.cost_model import CostModel
from diptych.core.ids import BlockHash, BlockId
from diptych.policy.promotion import ASK_PATIENCE_S, is_worth_loading, load_patience_s
from diptych.tiers.base import Target
from diptych.tiers.chain import ChainLoading, Plan, TierChain
from diptych.worker.load import Speed
from diptych.worker.memory import WorkerMemory
from diptych.worker.sequence import Sequence
from diptych.worker.sequence_blocks import SequenceBlocks


class Promoted(NamedTuple):
    """A sequence whose loading is over."""

    sequence: Sequence
    num_tokens: int
    """That were loaded; committed and findable."""
    num_shared_tokens: int
    """Of those, from a store that machines share."""


@dataclass(slots=True, eq=False)
class _Promotion:
    """A loading and whose it is."""

    loading: ChainLoading
    sequence: Sequence
    give_up_s: float
    has_given_up: bool = False


class _Question(NamedTuple):
    """A sequence of which a tier is finding out what it has."""

    sequence: Sequence
    give_up_s: float


class Promotions:
    """All loadings of one worker. Owned by its loop."""

    def __init__(  # noqa: PLR0913, PLR0917  the parts that it is made of
        self,
        tiers: TierChain,
        blocks: SequenceBlocks,
        memory: WorkerMemory,
        costs: CostModel,
        speed: Speed,
        chunk_tokens: int,
        clock: Clock,
    ) -> None:
        self._tiers = tiers
        self._blocks = blocks
        self._memory = memory
        self._costs = costs
        self._speed = speed
        self._chunk_tokens = chunk_tokens
        self._clock = clock
        self._asking: list[_Question] = []
        self._running: list[_Promotion] = []
        self._begun: list[tuple[Sequence, int]] = []
        self._abandoned: list[tuple[ChainLoading, list[BlockId]]] = []
        self.num_declined = 0
        """Sequences of which tiers had blocks, and computing was predicted to be sooner."""

    def next_s(self) -> float:
        """Return when `take_ended` is due at the latest."""
        running_s = min((one.give_up_s for one in self._running if not one.has_given_up), default=math.inf)
        return min(running_s, min((one.give_up_s for one in self._asking), default=math.inf))

    def try_begin(self, sequence: Sequence) -> bool:
        """Let `sequence` wait here if tiers may fill its first uncomputed blocks sooner than they would be computed.

        False: there is nothing to wait for.
        """
        loadable = self._blocks.loadable(sequence)
        hashes = [block_hash for block_hash, _ in loadable]
        plan = self._tiers.try_plan(hashes)
        if plan is not None:
            return self._try_load(sequence, loadable, plan)
        if not is_worth_loading(self._tiers.predict_best_s(len(loadable)), self._compute_s(sequence, len(loadable))):
            return self._try_load(sequence, loadable, self._tiers.plan_known(hashes))
        self._asking.append(_Question(sequence, self._clock.now_s() + ASK_PATIENCE_S))
        return True

    def _try_load(self, sequence: Sequence, loadable: list[tuple[BlockHash, BlockId]], plan: Plan) -> bool:
        """Begin to load as much of a plan as is worth it; tell whether that is anything."""
        had_blocks = plan.num_blocks > 0
        while plan.num_blocks:
            compute_s = self._compute_s(sequence, plan.num_blocks)
            if is_worth_loading(plan.predict_load_s(), compute_s):
                break
            plan = plan.without_last_run()
        else:
            self.num_declined += had_blocks
            return False
        targets = [Target(block_hash, self._memory.parts(block_id)) for block_hash, block_id in loadable]
        give_up_s = self._clock.now_s() + load_patience_s(compute_s)
        self._running.append(_Promotion(plan.load(targets[: plan.num_blocks]), sequence, give_up_s))
        num_tokens = plan.num_blocks * self._blocks.block_size
        self._begun.append((sequence, sequence.num_computed_tokens + num_tokens))
        return True

    def _compute_s(self, sequence: Sequence, num_blocks: int) -> float:
        """Return how long it would take to compute the next so many blocks."""
        num_tokens = num_blocks * self._blocks.block_size
        compute_s = self._costs.prefill_s(num_tokens, sequence.num_computed_tokens, self._chunk_tokens)
        return compute_s * self._speed.cost_scale

    def take_begun(self) -> list[tuple[Sequence, int]]:
        """Return whom tiers have begun to load for since the last call, and how many tokens of each are found then."""
        begun, self._begun = self._begun, []
        return begun

    def take_ended(self) -> list[Promoted]:
        """Return the sequences that need not wait any more, in the order in which they began to."""
        self._free_abandoned()
        now_s = self._clock.now_s()
        promoted = [Promoted(sequence, 0, 0) for sequence in self._take_unfound(now_s)]
        for one in self._running:
            if now_s >= one.give_up_s and not one.has_given_up:
                one.has_given_up = True
                one.loading.give_up()
        ended = [one for one in self._running if one.loading.is_over]  # asked once: it may be so a moment later
        self._running = [one for one in self._running if one not in ended]
        return promoted + [self._take(one) for one in ended]

    def _take_unfound(self, now_s: float) -> list[Sequence]:
        """Go on with those of which tiers have found out what they have; return those for which nothing is loaded."""
        questions, self._asking = self._asking, []
        unfound: list[Sequence] = []
        for question in questions:
            loadable = self._blocks.loadable(question.sequence)
            hashes = [block_hash for block_hash, _ in loadable]
            plan = self._tiers.try_plan(hashes)
            if plan is None and now_s < question.give_up_s:
                self._asking.append(question)
            elif not self._try_load(question.sequence, loadable, plan or self._tiers.plan_known(hashes)):
                unfound.append(question.sequence)
        return unfound

    def _take(self, promotion: _Promotion) -> Promoted:
        sequence, num_tokens = promotion.sequence, promotion.loading.num_loaded * self._blocks.block_size
        num_shared_tokens = promotion.loading.num_loaded_from(TierKind.SHARED) * self._blocks.block_size
        if num_tokens:
            first, size = sequence.num_computed_tokens // self._blocks.block_size, self._blocks.block_size
            loaded = sequence.block_table[first : first + num_tokens // size]
            self._memory.vouch_for(loaded, sequence.epoch)  # tiers have compared them with what was stored
            self._blocks.on_computed([(sequence, num_tokens)])
        return Promoted(sequence, num_tokens, num_shared_tokens)

    def abandon(self, sequence: Sequence) -> None:
        """Take the blocks from a sequence that has ended, and free them once no tier touches them."""
        promotion = next((one for one in self._running if one.sequence is sequence), None)
        if promotion is None:
            self._asking = [one for one in self._asking if one.sequence is not sequence]
            self._blocks.release(sequence)
            return
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
