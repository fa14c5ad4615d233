"""NVIDIA Dynamo's cost: what is left to compute, and what is in use, in blocks."""

import math
from collections.abc import Sequence

import numpy as np

from diptych.policy.pairing import WorkerLoad
from diptych.policy.routing.candidates import owners_pool, route, shortest_queues, soonest_reader
from diptych.policy.routing.fleet import Column, Columns, Fleet, Pool
from diptych.policy.routing.question import Chance, Question, Route, Rules

USED_BLOCK_COST = 1.0
"""Of a block in use, which every step reads, in blocks that would have to be computed."""
SEQUENCE_COST = 4.0
"""Of a sequence in the batch, a row of every step, in the same. Rows weigh more on a CPU than the KV that they read,
and KV alone would send many short answers to one worker."""


def overlap_load(
    question: Question, loads: Sequence[WorkerLoad], rules: Rules, turn: int, chance: Chance
) -> Route | None:
    """Take the owner on which the request costs least, or draw one by cost, then the reader that would be done first.

    Workers without room for the prompt come after all that have it.

    See: NVIDIA Dynamo, documentation, "Routing Concepts": prompt blocks left to compute plus blocks in use; at a
    temperature above 0 a draw by softmax over normalised costs. We differ in that each sequence has a cost besides its
    blocks, and that a full worker is last whatever it has cached.
    """
    fleet = Fleet.of(loads)
    pool, places = owners_pool(question, fleet, rules)
    if not len(places):
        return None
    columns, news = pool.columns, new_blocks(pool, question, rules)
    has_room = (columns.num_used_blocks + news <= columns.num_usable_blocks)[places]
    if has_room.any():
        places = places[has_room]
    costs = costs_of(columns, news, rules)[places]
    if rules.temperature > 0:
        owner = draw_owner(pool.at(places), costs.tolist(), rules.temperature, chance)
    else:
        (owner,) = pool.cheapest(places, costs, 1)
    queues = shortest_queues(fleet, question, rules)
    reader = soonest_reader(owner, question.num_cached(owner.worker_id), queues, question, rules)
    return route(owner, reader.load, question, rules)


def costs_of(columns: Columns, news: Column, rules: Rules) -> Column:
    """Return what placing a request on each worker costs, which has to compute so many blocks of it (`news`)."""
    queued = np.ceil(columns.num_queued_tokens / rules.block_size)
    in_use = USED_BLOCK_COST * columns.num_used_blocks + SEQUENCE_COST * columns.num_sequences
    cost: Column = news + queued + in_use
    return cost


def new_blocks(pool: Pool, question: Question, rules: Rules) -> Column:
    """Return how many blocks of the prompt each worker of a pool has not cached, by place."""
    num_prompt, size = question.num_prompt_tokens, rules.block_size
    news = np.full(len(pool.loads), float(-(-num_prompt // size)))
    # Most have nothing of it, or the same system prompt.
    left = {
        count: -(-(num_prompt - min(count, num_prompt - 1)) // size) for count in set(question.matched_tokens.values())
    }
    holders = pool.places_of(question.matched_tokens)
    if holders:
        news[list(holders)] = [left[question.matched_tokens[worker_id]] for worker_id in holders.values()]
    return news


def draw_owner(loads: Sequence[WorkerLoad], costs: Sequence[float], temperature: float, chance: Chance) -> WorkerLoad:
    """Draw one by cost, the dearer the less likely.

    At a temperature of 1 the dearest is drawn 1/e times as often as the cheapest.
    """
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
