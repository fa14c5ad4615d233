"""Which decode worker owns a request, and who reads its prompt. Pure.

Step 2 of a request's life: the router asks with snapshots of all workers and sends the request where the answer says.
The decode worker comes first, because it owns the blocks and may hold a part of the prompt already; what is left to
compute then decides about the prefill worker.

Invariants: a worker that is not accepting is never chosen; more load never makes a worker more likely to be chosen; the
order of the snapshots does not matter (ties go to the lowest id).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from diptych.core.ids import WorkerId


@dataclass(frozen=True, slots=True)
class DecodeLoad:
    """A decode or mixed worker at the moment of the decision."""

    worker_id: WorkerId
    is_accepting: bool
    """Lives, is ready, is not draining."""
    is_mixed: bool
    """Always reads its prompts itself."""
    num_blocks: int
    """Owned by the worker."""
    num_used_blocks: int
    """Held by requests, including those that are still on their way; cached blocks without a user are not in use."""
    num_sequences: int
    """Running, waiting, or on their way."""
    queued_prefill_blocks: int
    """Prompt blocks that this worker itself still has to compute."""


@dataclass(frozen=True, slots=True)
class PrefillLoad:
    """A prefill worker at the moment of the decision."""

    worker_id: WorkerId
    is_accepting: bool
    """Lives, is ready, is not draining."""
    queued_tokens: int
    """Prompt tokens before a new one's, including those that are still on their way."""
    tokens_per_s: float
    """Measured prefill speed; 0.0 means not measured and counts as slowest."""

    def predict_ttft_s(self, num_tokens: int) -> float:
        """Return when the prefill of `num_tokens` more tokens would be done, in seconds from now."""
        if self.tokens_per_s <= 0.0:
            return math.inf
        return (self.queued_tokens + num_tokens) / self.tokens_per_s


@dataclass(frozen=True, slots=True)
class RoutingWeights:
    """What things cost, in blocks that would have to be computed."""

    used_block: float = 1.0
    """A block in use: every step reads it."""
    sequence: float = 4.0
    """A sequence in the batch: a row of every step. Rows weigh more on a CPU than the KV they read, and KV alone would
    send many short answers to one worker."""

    def decode_cost(self, load: DecodeLoad, num_uncached_blocks: int) -> float:
        """Return what placing a request on `load` costs, of which `num_uncached_blocks` are not in its cache."""
        return (
            num_uncached_blocks
            + load.queued_prefill_blocks
            + self.used_block * load.num_used_blocks
            + self.sequence * load.num_sequences
        )


DEFAULT_WEIGHTS = RoutingWeights()


def choose_decode_worker(
    num_prompt_blocks: int,
    matched_blocks: Mapping[WorkerId, int],
    loads: Iterable[DecodeLoad],
    weights: RoutingWeights = DEFAULT_WEIGHTS,
) -> WorkerId | None:
    """Return the worker on which the request costs least; None if no worker accepts requests.

    `matched_blocks`: leading blocks of the prompt in each worker's prefix cache (a worker that is absent has none).
    Workers without room for the rest of the prompt come after all that have it. Ties go to the lowest id.

    See: NVIDIA Dynamo, documentation, "Routing Concepts": prompt blocks left to compute plus blocks in use, the lowest
    sum wins; DistServe (Zhong et al., OSDI 2024): the least-loaded decode instance. We differ in that each sequence has
    a cost besides its blocks, that a full worker is last whatever it has cached, and that nothing is drawn by lot.
    """

    def order(load: DecodeLoad) -> tuple[bool, float, WorkerId]:
        num_uncached_blocks = max(num_prompt_blocks - matched_blocks.get(load.worker_id, 0), 0)
        is_full = load.num_used_blocks + num_uncached_blocks > load.num_blocks
        return is_full, weights.decode_cost(load, num_uncached_blocks), load.worker_id

    best = min((load for load in loads if load.is_accepting), key=order, default=None)
    return None if best is None else best.worker_id


def choose_prefill_worker(num_uncached_tokens: int, loads: Iterable[PrefillLoad]) -> WorkerId | None:
    """Return the worker that would be done with the prompt first; None if no worker accepts prompts.

    Ties go to the shorter queue, then to the lowest id.

    See: DistServe (Zhong et al., OSDI 2024), runtime scheduling: the prefill instance with the shortest queue. We
    measure the queue in seconds, so that workers of unequal speed are used in proportion.
    """

    def order(load: PrefillLoad) -> tuple[float, int, WorkerId]:
        return load.predict_ttft_s(num_uncached_tokens), load.queued_tokens, load.worker_id

    best = min((load for load in loads if load.is_accepting), key=order, default=None)
    return None if best is None else best.worker_id


def choose_prefill_path(
    num_uncached_tokens: int,
    decode: DecodeLoad,
    prefill_loads: Sequence[PrefillLoad],
    local_prefill_max_tokens: int,
) -> WorkerId | None:
    """Return who reads the prompt; None: the decode worker itself.

    It does if it is mixed, if at most `local_prefill_max_tokens` are not in its cache (appending those to a running
    batch costs its answers less than a hand-over costs the new one), or if no prefill worker accepts prompts.

    See: NVIDIA Dynamo, conditional disaggregation. We have one threshold, on the uncached part, where it weighs that
    part's share of the prompt too; here a hand-over moves no KV, so the cached part has no price.
    """
    if decode.is_mixed or num_uncached_tokens <= local_prefill_max_tokens:
        return None
    return choose_prefill_worker(num_uncached_tokens, prefill_loads)
