"""What the workers of one place have done in all their lives: a counter must not fall when a worker is replaced."""

from collections import Counter
from typing import NamedTuple

from diptych.core.messages import Heartbeat, WorkerStatus
from diptych.core.tally import Tally
from diptych.core.work_status import ANSWER_BOUNDS, PROMPT_BOUNDS, STEP_BOUNDS_S, StepKind


class Totals(NamedTuple):
    """Sums since a life's start, or over several lives."""

    counts: Counter[str]
    step_s: dict[StepKind, Tally]
    expected_s: dict[StepKind, float]
    prompt_tokens: Tally
    answers: Tally

    @classmethod
    def nothing(cls) -> "Totals":
        """Return those of a worker that has done nothing."""
        steps = {kind: Tally.over(STEP_BOUNDS_S) for kind in StepKind}
        expected_s = dict.fromkeys(StepKind, 0.0)
        return cls(Counter(), steps, expected_s, Tally.over(PROMPT_BOUNDS), Tally.over(ANSWER_BOUNDS))

    @classmethod
    def of(cls, status: WorkerStatus) -> "Totals":
        """Return what a worker says of its life so far."""
        nothing = cls.nothing()
        own = nothing._replace(counts=_counts_of(status))
        work = status.work
        if work is None:
            return own
        steps = {kind: nothing.step_s[kind].plus(work.step_s.get(kind, nothing.step_s[kind])) for kind in StepKind}
        expected_s = nothing.expected_s | work.expected_s
        prompt_tokens, answers = nothing.prompt_tokens.plus(work.prompt_tokens), nothing.answers.plus(work.answers)
        return cls(own.counts, steps, expected_s, prompt_tokens, answers)

    def plus(self, other: "Totals") -> "Totals":
        """Return both together."""
        return Totals(
            self.counts + other.counts,
            {kind: self.step_s[kind].plus(other.step_s[kind]) for kind in StepKind},
            {kind: self.expected_s[kind] + other.expected_s[kind] for kind in StepKind},
            self.prompt_tokens.plus(other.prompt_tokens),
            self.answers.plus(other.answers),
        )


def _counts_of(status: WorkerStatus) -> Counter[str]:
    """Return the plain counts, by names that only this room knows."""
    counts = Counter(dropped=status.num_dropped_messages, damaged=status.num_damaged_blocks)
    if status.work is not None:
        counts["failed_steps"] = status.work.num_failed_steps
    cache = status.cache
    if cache is None:
        return counts
    counts.update(
        asked=cache.num_asked_tokens,
        computed=cache.num_computed_tokens,
        memory=cache.num_memory_tokens - cache.num_copied_tokens,
        copied=cache.num_copied_tokens,
        disk=cache.num_tier_tokens - cache.num_shared_tokens,
        shared=cache.num_shared_tokens,
        copied_bytes=cache.num_copied_bytes,
        memory_evicted=cache.num_evicted_blocks,
        lost=cache.num_lost_blocks,
    )
    for tier in cache.tiers:
        counts.update(
            {
                f"{tier.kind}_evicted": tier.num_evicted_blocks,
                f"{tier.kind}_loaded_bytes": tier.num_loaded_blocks * cache.block_bytes,
                f"{tier.kind}_stored_bytes": tier.num_stored_blocks * cache.block_bytes,
                f"{tier.kind}_failures": tier.num_failures,
            }
        )
    return counts


class Place:
    """The lives that fill one place of the cluster, one after the other."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        self._last = heartbeat
        self._before = Totals.nothing()
        self.num_restarts = 0

    def on_heartbeat(self, heartbeat: Heartbeat) -> None:
        """Take what the present life says; one of a life before it is too late."""
        incarnation, known = heartbeat.address.incarnation, self._last.address.incarnation
        if incarnation < known:
            return
        if incarnation > known:
            self._before = self._before.plus(Totals.of(self._last.status))
            self.num_restarts += 1
        self._last = heartbeat

    @property
    def totals(self) -> Totals:
        """What all lives have done, as far as they have told."""
        return self._before.plus(Totals.of(self._last.status))
