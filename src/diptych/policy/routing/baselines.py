"""Policies that know nothing of prefixes: what the others are measured against."""

from collections.abc import Callable, Sequence
from operator import attrgetter

from diptych.policy.pairing import WorkerLoad
from diptych.policy.routing.candidates import (
    able_owners,
    able_readers,
    busy,
    is_full,
    reads_itself,
    route,
    shortest_queues,
    soonest_reader,
)
from diptych.policy.routing.question import Chance, Question, Route, Rules

BY_ID = attrgetter("worker_id")


def at_random(question: Question, loads: Sequence[WorkerLoad], rules: Rules, turn: int, chance: Chance) -> Route | None:
    """Draw an owner, and a reader."""
    return _pick(question, loads, rules, lambda among: among[int(chance.random() * len(among))])


def round_robin(
    question: Question, loads: Sequence[WorkerLoad], rules: Rules, turn: int, chance: Chance
) -> Route | None:
    """Take one after the other in the order of their ids, owners and readers alike."""
    return _pick(question, loads, rules, lambda among: among[turn % len(among)])


def _pick(
    question: Question,
    loads: Sequence[WorkerLoad],
    rules: Rules,
    one_of: Callable[[Sequence[WorkerLoad]], WorkerLoad],
) -> Route | None:
    owners = sorted(able_owners(question, loads, rules), key=BY_ID)
    if not owners:
        return None
    owner = one_of(owners)
    able = able_readers(loads)
    near = [load for load in able if load.node == owner.node]
    readers = sorted(near or able, key=BY_ID)
    num_uncached = question.num_prompt_tokens - question.num_cached(owner.worker_id)
    is_alone = not readers or reads_itself(owner, num_uncached, rules)
    return route(owner, owner if is_alone else one_of(readers), question, rules)


def least_loaded(
    question: Question, loads: Sequence[WorkerLoad], rules: Rules, turn: int, chance: Chance
) -> Route | None:
    """Take the owner with the fewest answers to write, then the reader that would be done first.

    An owner that reads prompts itself is judged by those first: they are what the newcomer would wait for.

    See: DistServe (Zhong et al., OSDI 2024), runtime scheduling: the shortest prefill queue, then the least loaded
    decode instance. We count answers, not blocks: on a CPU a row of a step weighs more than the KV that it reads.
    """
    owners = able_owners(question, loads, rules)
    if not owners:
        return None
    owner = min(owners, key=lambda load: (is_full(load, question, rules), busy(load)))
    queues = shortest_queues(loads, question, rules)
    reader = soonest_reader(owner, question.num_cached(owner.worker_id), queues, question, rules)
    return route(owner, reader.load, question, rules)
