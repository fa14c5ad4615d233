"""How long a step takes, as a formula.

Three things take time in a step: passing all new tokens through the weights, giving a row its logits, and attention.
The first is a curve, not a line: a few tokens cost hardly more than one (the weights are read once whatever there is to
compute), then kernels for small matrices take over, then those for large ones. Attention has a part for each earlier
token that a row reads, and one for each pair of a new token and a token that it attends to.

See: DistServe (OSDI 2024, appendix A) for the parts; it has straight lines where we have a curve, since it models GPUs
at sizes where lines hold.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple


def count_pairs(num_tokens: int, num_past: int) -> int:
    """Return how many pairs there are of a new token and one that it attends to, itself and the past included."""
    return num_tokens * num_past + num_tokens * (num_tokens + 1) // 2


class StepWork(NamedTuple):
    """What a step has to compute, added up over its rows."""

    num_rows: int = 0
    num_tokens: int = 0
    """New ones."""
    num_past: int = 0
    """Earlier tokens whose KV is read, once a row."""
    num_pairs: float = 0.0
    """Of a new token and one that it attends to."""

    def plus(self, num_tokens: int, num_past: int) -> "StepWork":
        """Return the work of a step with a row more, of `num_tokens` new tokens behind `num_past` earlier ones."""
        return StepWork(
            self.num_rows + 1,
            self.num_tokens + num_tokens,
            self.num_past + num_past,
            self.num_pairs + count_pairs(num_tokens, num_past),
        )

    def joined(self, other: "StepWork") -> "StepWork":
        """Return the work of one step that does both."""
        return StepWork(
            self.num_rows + other.num_rows,
            self.num_tokens + other.num_tokens,
            self.num_past + other.num_past,
            self.num_pairs + other.num_pairs,
        )

    @classmethod
    def of(cls, rows: Iterable[tuple[int, int]]) -> "StepWork":
        """Return the work of rows of (new tokens, tokens before them)."""
        work = cls()
        for num_tokens, num_past in rows:
            work = work.plus(num_tokens, num_past)
        return work

    @classmethod
    def of_answers(cls, num_answers: int, num_context_tokens: int) -> "StepWork":
        """Return the work of a step that continues answers with so many tokens of context in all."""
        return cls(num_answers, num_answers, num_context_tokens, num_context_tokens + num_answers)


@dataclass(frozen=True, slots=True)
class CostModel:
    """Seconds of a step on one worker: `pass_s(tokens) + row_s * rows + past_token_s * past + pair_s * pairs`."""

    knots: tuple[tuple[int, float], ...]
    """(new tokens in the step, seconds of their way through the weights), growing; straight lines in between, and the
    last line goes on."""
    row_s: float
    """Logits of a row, and whatever else each row costs."""
    past_token_s: float
    """Reading one earlier token's KV, over all layers."""
    pair_s: float
    """One new token attending to one token, over all layers."""
    change_s: float = 0.0
    """What a step takes longer than the one before would have, for having another number of rows or new tokens: engines
    prepare each shape anew. In no prediction of a single step; workers' `cost_scale` makes up for it on average."""

    @classmethod
    def linear(cls, step_base_s: float, token_s: float, pair_s: float) -> "CostModel":
        """Return a model with a constant for a step, one for a token, and one for a pair."""
        return cls(((1, step_base_s + token_s), (2, step_base_s + 2 * token_s)), 0.0, 0.0, pair_s)

    def pass_s(self, num_tokens: int) -> float:
        """Return how long `num_tokens` take on their way through the weights."""
        if num_tokens <= 0:
            return 0.0
        place = bisect_right(self.knots, (num_tokens, math.inf))
        place = min(max(place, 1), len(self.knots) - 1)
        (before, before_s), (behind, behind_s) = self.knots[place - 1 : place + 1]
        return before_s + (behind_s - before_s) * (num_tokens - before) / (behind - before)

    def work_s(self, work: StepWork) -> float:
        """Return how long a step takes; 0 for one without rows."""
        return (
            self.pass_s(work.num_tokens)
            + self.row_s * work.num_rows
            + self.past_token_s * work.num_past
            + self.pair_s * work.num_pairs
        )

    def step_s(self, rows: Iterable[tuple[int, int]]) -> float:
        """Return the duration of a step over rows of (new tokens, tokens before them)."""
        return self.work_s(StepWork.of(rows))

    def prefill_s(self, num_tokens: int, num_past: int, chunk_tokens: int) -> float:
        """Return how long a prompt's `num_tokens` take behind `num_past`, in chunks, with nothing else in the steps."""
        num_full, num_rest = divmod(num_tokens, chunk_tokens)
        # Equal chunks whose pasts grow evenly: their sum needs no loop.
        sum_past = num_full * num_past + num_full * (num_full - 1) // 2 * chunk_tokens
        seconds = num_full * (self.pass_s(chunk_tokens) + self.row_s) if num_full else 0.0
        if num_rest:
            seconds += self.pass_s(num_rest) + self.row_s
            sum_past += num_past + num_full * chunk_tokens
        return seconds + self.past_token_s * sum_past + self.pair_s * count_pairs(num_tokens, num_past)

    def queue_s(self, num_tokens: int, num_pairs: int, chunk_tokens: int) -> float:
        """Return how long prompts take that have so many tokens and pairs in all, in full chunks, one behind the other.

        Of a single prompt that is `prefill_s`. Of several it is less than of one as long as all of them: no token
        attends to those of another prompt.
        """
        num_full, num_rest = divmod(num_tokens, chunk_tokens)
        seconds = num_full * (self.pass_s(chunk_tokens) + self.row_s)
        if num_rest:
            seconds += self.pass_s(num_rest) + self.row_s
        # A chunk reads its past once, and each of its tokens attends to all of that.
        num_within = num_full * count_pairs(chunk_tokens, 0) + count_pairs(num_rest, 0)
        num_past = max(num_pairs - num_within, 0) / chunk_tokens
        return seconds + self.past_token_s * num_past + self.pair_s * num_pairs

    def answers_s(self, num_answers: float, mean_context_tokens: float) -> float:
        """Return the mean duration of steps that continue `num_answers` on average: in between, some have one more."""
        low = math.floor(num_answers)
        low_s = self.work_s(StepWork.of_answers(low, round(low * mean_context_tokens)))
        if num_answers == low:
            return low_s
        high_s = self.work_s(StepWork.of_answers(low + 1, round((low + 1) * mean_context_tokens)))
        return low_s + (high_s - low_s) * (num_answers - low)

    def largest_chunk(self, beside: StepWork, num_past: int, limit_s: float, most_tokens: int) -> int:
        """Return how many tokens of a prompt, `num_past` of which are known, a step takes within `limit_s` at most.

        `beside` is in the step anyway. 0 if not even one token fits.
        """
        return bisect_right(
            range(1, most_tokens + 1), limit_s, key=lambda num_tokens: self.work_s(beside.plus(num_tokens, num_past))
        )

    def scaled(self, factor: float) -> "CostModel":
        """Return a model of a machine that takes `factor` times as long."""
        return replace(
            self,
            knots=tuple((num_tokens, seconds * factor) for num_tokens, seconds in self.knots),
            row_s=self.row_s * factor,
            past_token_s=self.past_token_s * factor,
            pair_s=self.pair_s * factor,
            change_s=self.change_s * factor,
        )
