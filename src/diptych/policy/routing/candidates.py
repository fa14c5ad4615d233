"""Who may own a request, and who may read its prompt: what most policies share.

With many workers a policy that predicts would take long: it looks closely at a few only, which cheap figures pick out.
"""

from collections.abc import Collection, Sequence
from heapq import nsmallest

from diptych.core.ids import WorkerId
from diptych.core.messages import Role
from diptych.policy.pairing import Pair, Reader, WorkerLoad, predict_pair
from diptych.policy.routing.fleet import Fleet, Places, Pool
from diptych.policy.routing.question import Question, Route, Rules

MOST_MATCHED = 6
"""Owners that are looked at closely for their prefixes."""
MOST_IDLE = 8
"""... and for having little to do."""
MOST_READERS = 4
"""... of each machine."""


def able_owners(question: Question, loads: Sequence[WorkerLoad], rules: Rules) -> list[WorkerLoad]:
    """Return who can own the request."""
    pool, places = owners_pool(question, Fleet.of(loads), rules)
    return pool.at(places)


def owners_pool(question: Question, fleet: Fleet, rules: Rules) -> tuple[Pool, Places]:
    """Return where those are who can own the request: prefill workers, which can where they have blocks, at need."""
    num_needed = -(-question.num_most_tokens // rules.block_size)
    writers = fleet.writers.able(num_needed)
    return (fleet.writers, writers) if len(writers) else (fleet.readers, fleet.readers.able(num_needed))


def able_readers(loads: Sequence[WorkerLoad]) -> list[WorkerLoad]:
    """Return who may read prompts for others."""
    readers = Fleet.of(loads).readers
    return readers.at(readers.able())


def reads_itself(owner: WorkerLoad, num_uncached: int, rules: Rules) -> bool:
    """Tell whether an owner reads its prompt itself though there are others: so few tokens, or no decode worker.

    See: NVIDIA Dynamo, conditional disaggregation. We have one threshold, on the uncached part, where it weighs that
    part's share of the prompt too; here a hand-over moves no KV, so the cached part has no price.
    """
    return owner.role is not Role.DECODE or num_uncached <= rules.local_prefill_max_tokens


def is_full(owner: WorkerLoad, question: Question, rules: Rules) -> bool:
    """Tell whether a worker has no room for the prompt now: it would wait there."""
    num_uncached = question.num_prompt_tokens - question.num_cached(owner.worker_id)
    return owner.num_used_blocks + -(-num_uncached // rules.block_size) > owner.num_blocks


def shortest_queues(loads: Sequence[WorkerLoad], question: Question, rules: Rules) -> list[Reader]:
    """Return the readers that will be done first with what they have to read already, and those with long prefixes."""
    return [as_reader(load, question, rules) for load in few_readers(loads, question)]


def as_reader(load: WorkerLoad, question: Question, rules: Rules) -> Reader:
    """Return a worker as a reader of the prompt."""
    return Reader.of(load, rules.slo, question.num_answer_tokens, question.num_cached(load.worker_id))


def few_readers(loads: Sequence[WorkerLoad], question: Question) -> list[WorkerLoad]:
    """Return the readers that are looked at: short queues, and long prefixes, which count for owners elsewhere."""
    readers = Fleet.of(loads).readers
    few = readers.shortest_queues(MOST_READERS)
    if len({load.node for load in few}) <= 1:
        return few
    chosen = {load.worker_id for load in few}
    others = longest_prefixes(readers.at(readers.able()), question)
    return [*few, *(load for load in others if load.worker_id not in chosen)]


def soonest_reader(
    owner: WorkerLoad, num_cached: int, readers: Sequence[Reader], question: Question, rules: Rules
) -> Reader:
    """Return who would be done first with the rest of a prompt: one of `readers`, or the owner where that is better.

    See: DistServe (Zhong et al., OSDI 2024), runtime scheduling: the prefill instance with the shortest queue. We
    measure the queue in predicted seconds, so that workers of unequal speed are used in proportion.
    """
    num_uncached = question.num_prompt_tokens - num_cached
    if not readers or reads_itself(owner, num_uncached, rules):
        return as_reader(owner, question, rules)

    def wait(reader: Reader) -> tuple[float, float, bool, WorkerId]:
        load, plan = reader.load, reader.plan(owner, question.num_prompt_tokens, num_cached)
        return reader.ttft_s(plan), reader.queue_s, load.node != owner.node, load.worker_id

    return min(readers, key=wait)


def shortlist(owners: Sequence[WorkerLoad], question: Question) -> Collection[WorkerLoad]:
    """Return the owners with the longest prefixes and those with the least to do; all, where they are few."""
    if len(owners) <= MOST_MATCHED + MOST_IDLE:
        return owners
    idle = nsmallest(MOST_IDLE, owners, key=busy)
    return {load.worker_id: load for load in (*longest_prefixes(owners, question), *idle)}.values()


def longest_prefixes(loads: Sequence[WorkerLoad], question: Question) -> list[WorkerLoad]:
    """Return a few workers that have the most of the prompt in their caches."""
    matched = question.matched_tokens
    holders = [load for load in loads if load.worker_id in matched]
    return nsmallest(MOST_MATCHED, holders, key=lambda load: (-matched[load.worker_id], *busy(load)))


def busy(load: WorkerLoad) -> tuple[int, int, WorkerId]:
    """Return how much an owner has to do, to be compared: what it reads itself, then what it writes."""
    num_queued = 0 if load.role is Role.DECODE else load.num_queued_tokens
    return num_queued, load.num_answers + load.num_unread, load.worker_id


def route(owner: WorkerLoad, reader: WorkerLoad, question: Question, rules: Rules) -> Route:
    """Return the answer of a policy that copies nothing and predicts nothing of the two together."""
    cached, answer = question.num_cached(owner.worker_id), question.num_answer_tokens
    own = as_reader(reader, question, rules)

    def predict() -> Pair:
        return predict_pair(owner, own, question.num_prompt_tokens, cached, rules.slo, answer)

    reading = own.plan(owner, question.num_prompt_tokens, cached)
    return Route(owner.worker_id, reader.worker_id, reading, predict)
