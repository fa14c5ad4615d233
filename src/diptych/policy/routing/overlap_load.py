"""NVIDIA Dynamo's cost: what is left to compute, and what is in use, in blocks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from operator import attrgetter

from diptych.policy.pairing import WorkerLoad
from diptych.policy.routing.candidates import (
    able_owners,
    able_readers,
    is_full,
    route,
    shortest_queues,
    soonest_reader,
)
from diptych.policy.routing.question import Chance, Question, Route, Rules


@dataclass(frozen=True, slots=True)
class Weights:
    """What things cost, in blocks that would have to be computed."""

    used_block: float = 1.0
    """A block in use: every step reads it."""
    sequence: float = 4.0
    """A sequence in the batch: a row of every step. Rows weigh more on a CPU than the KV they read, and KV alone would
    send many short answers to one worker."""


DEFAULT_WEIGHTS = Weights()
_id_of = attrgetter("worker_id")


def overlap_load(
    question: Question, loads: Sequence[WorkerLoad], rules: Rules, turn: int, chance: Chance
) -> Route | None:
    """Take the owner on which the request costs least, or draw one by cost, then the reader that would be done first.

    Workers without room for the prompt come after all that have it.

    See: NVIDIA Dynamo, documentation, "Routing Concepts": prompt blocks left to compute plus blocks in use; at a
    temperature above 0 a draw by softmax over normalised costs. We differ in that each sequence has a cost besides its
    blocks, and that a full worker is last whatever it has cached.
    """
    owners = able_owners(question, loads, rules)
    if not owners:
        return None
    costs = costs_of(owners, new_blocks(owners, question, rules), rules)
    owner = _cheapest(owners, costs)
    if rules.temperature > 0 or is_full(owner, question, rules):
        has_room = [not is_full(load, question, rules) for load in owners]
        if any(has_room):
            owners, costs = list(compress(owners, has_room)), list(compress(costs, has_room))
        owner = choose_owner(owners, costs, rules.temperature, chance)
    queues = shortest_queues(able_readers(loads), question, rules)
    reader = soonest_reader(owner, question.num_cached(owner.worker_id), queues, question, rules)
    return route(owner, reader.load, question, rules)


def new_blocks(owners: Sequence[WorkerLoad], question: Question, rules: Rules) -> list[int]:
    """Return how many blocks of the prompt each owner has not cached."""
    num_all = -(-question.num_prompt_tokens // rules.block_size)
    # Most have nothing of it, or the same system prompt.
    left = {0: num_all}
    for num_matched in set(question.matched_tokens.values()):
        num_cached = min(num_matched, question.num_prompt_tokens - 1)
        left[num_matched] = -(-(question.num_prompt_tokens - num_cached) // rules.block_size)
    find = question.matched_tokens.get
    return [left[find(load.worker_id, 0)] for load in owners]


def costs_of(
    owners: Sequence[WorkerLoad], news: Sequence[int], rules: Rules, weights: Weights = DEFAULT_WEIGHTS
) -> list[float]:
    """Return what placing a request on each owner costs, which has to compute so many blocks of it (`news`)."""
    block_size, used_block, sequence = rules.block_size, weights.used_block, weights.sequence
    return [
        num_new
        - (-load.num_queued_tokens // block_size)
        + used_block * load.num_used_blocks
        + sequence * (load.num_answers + load.num_unread)
        for load, num_new in zip(owners, news, strict=True)
    ]


def choose_owner(loads: Sequence[WorkerLoad], costs: Sequence[float], temperature: float, chance: Chance) -> WorkerLoad:
    """Return the cheapest, ties by the lowest id; or draw one, the dearer the less likely, if `temperature` is not 0.

    At a temperature of 1 the dearest is drawn 1/e times as often as the cheapest.
    """
    if temperature <= 0:
        return _cheapest(loads, costs)
    by_cost = zip(costs, loads, strict=True)
    ordered = sorted(by_cost, key=lambda one: one[1].worker_id)  # the same draw whatever the order of the snapshots
    least, most = min(costs), max(costs)
    spread = (most - least) * temperature
    shares = [math.exp(-(one - least) / spread) if spread else 1.0 for one, _ in ordered]
    point = chance.random() * sum(shares)
    for share, (_, load) in zip(shares, ordered, strict=True):
        point -= share
        if point < 0:
            return load
    return ordered[-1][1]


def _cheapest(loads: Sequence[WorkerLoad], costs: Sequence[float]) -> WorkerLoad:
    least = min(costs)
    return min((load for load, price in zip(loads, costs, strict=True) if price == least), key=_id_of)
