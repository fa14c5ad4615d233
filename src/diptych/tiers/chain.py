"""Several tiers, the nearest first, from which one prompt is loaded: what one has not, the next one may have.

Where a prompt's blocks are is a plan, run by run: each block comes from the nearest tier that has it. All runs of a
plan are loaded at the same time. A loading ends at the first block that is not to be had, whichever tier was to have
it; what was loaded behind that is of no use, and is not counted.
"""

from collections.abc import Sequence
from typing import NamedTuple

from diptych.core.cache_status import TierKind
from diptych.core.ids import BlockHash
from diptych.tiers.base import BlockTier, Loading, Target


class Run(NamedTuple):
    """Blocks of a prompt that follow each other and are in one tier."""

    tier: BlockTier
    num_blocks: int


class Plan(NamedTuple):
    """Where the first blocks of a prompt are to come from."""

    runs: Sequence[Run]

    @property
    def num_blocks(self) -> int:
        """How many can be loaded."""
        return sum(run.num_blocks for run in self.runs)

    def without_last_run(self) -> "Plan":
        """Return what is left without its last run."""
        return Plan(self.runs[:-1])

    def predict_load_s(self) -> float:
        """Return how long that would take."""
        num_blocks = {run.tier: 0 for run in self.runs}
        for run in self.runs:
            num_blocks[run.tier] += run.num_blocks
        return max((tier.predict_load_s(number) for tier, number in num_blocks.items()), default=0.0)

    def load(self, targets: Sequence[Target]) -> "ChainLoading":
        """Begin to load the plan's blocks, each into its target."""
        parts: list[Part] = []
        begin = 0
        for tier, num_blocks in self.runs:
            parts.append(Part(tier.kind, num_blocks, tier.load(targets[begin : begin + num_blocks])))
            begin += num_blocks
        return ChainLoading(parts)


class Part(NamedTuple):
    """A run on its way up."""

    kind: TierKind
    num_blocks: int
    loading: Loading


class ChainLoading:
    """A `Loading` (base.py) of several runs."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts

    @property
    def num_loaded(self) -> int:
        """How many of its first targets hold what they should, whoever has filled them."""
        return sum(number for _, number in self._leading())

    def num_loaded_from(self, kind: TierKind) -> int:
        """Return how many of these a kind of tier has filled."""
        return sum(number for part, number in self._leading() if part.kind is kind)

    def _leading(self) -> list[tuple[Part, int]]:
        """Return the parts up to the first one that is not complete, and how far they are."""
        leading: list[tuple[Part, int]] = []
        for part in self._parts:
            leading.append((part, part.loading.num_loaded))
            if leading[-1][1] < part.num_blocks:
                break
        return leading

    @property
    def is_over(self) -> bool:
        """Whether no tier touches any target any more. Ends what is behind a gap."""
        for part, num_loaded in self._leading():
            if part.loading.is_over and num_loaded < part.num_blocks:
                self.cancel()
        return all(part.loading.is_over for part in self._parts)

    def cancel(self) -> None:
        """Stop all of it."""
        for part in self._parts:
            part.loading.cancel()

    def give_up(self) -> None:
        """Stop all of it; who has not yet done his part was too slow."""
        for part in self._parts:
            part.loading.give_up()


class TierChain:
    """The tiers of one worker as it loads from them. Owned by its loop."""

    def __init__(self, tiers: Sequence[BlockTier]) -> None:
        """`tiers`: at least one, the nearest first."""
        self._tiers = tiers

    def try_plan(self, hashes: Sequence[BlockHash]) -> Plan | None:
        """Return where the first `hashes` can be loaded from; None: a tier is finding out, ask again when it tells."""
        plan, is_whole = self._plan(hashes)
        return plan if is_whole else None

    def plan_known(self, hashes: Sequence[BlockHash]) -> Plan:
        """Return where the first `hashes` can be loaded from, as far as no tier has to find that out."""
        plan, _ = self._plan(hashes)
        return plan

    def _plan(self, hashes: Sequence[BlockHash]) -> tuple[Plan, bool]:
        """Return what is known, and whether no tier has to find out any more of it."""
        runs: list[Run] = []
        begin = 0
        while begin < len(hashes):
            run = self._next_run(hashes[begin:])
            if run is None or not run.num_blocks:
                return Plan(runs), run is not None
            runs.append(run)
            begin += run.num_blocks
        return Plan(runs), True

    def _next_run(self, hashes: Sequence[BlockHash]) -> Run | None:
        """Return what the nearest tier has that has the first of `hashes`; None: one is finding out whether it has."""
        for tier in self._tiers:
            num_blocks = tier.num_leading_blocks(hashes)
            if num_blocks is None:
                return None
            if num_blocks:
                return Run(tier, num_blocks)
        return Run(self._tiers[-1], 0)

    def predict_best_s(self, num_blocks: int) -> float:
        """Return how long it would take to load so many blocks from the tier that is the fastest for them."""
        return min(tier.predict_load_s(num_blocks) for tier in self._tiers)
