"""Who may own a request, and who may read its prompt: what most policies share.

With many workers a policy that predicts would take long: it looks closely at a few only, which cheap figures pick out.
"""

from collections.abc import Collection, Sequence
from heapq import nsmallest
from operator import attrgetter

from diptych.core.ids import NodeId, WorkerId
from diptych.core.messages import Role
from diptych.policy.pairing import CHUNK_TOKENS, Pair, Reader, WorkerLoad, predict_pair
from diptych.policy.routing.question import Question, Route, Rules

MOST_MATCHED = 6
"""Owners that are looked at closely for their prefixes."""
MOST_IDLE = 8
"""... and for having little to do."""
MOST_READERS = 4
"""... of each machine."""


def able_owners(question: Question, loads: Sequence[WorkerLoad], rules: Rules) -> list[WorkerLoad]:
    """Return who can own the request: prefill workers, which can where they have blocks, only if nobody else can."""
    num_needed = -(-question.num_most_tokens // rules.block_size)
    able = [
        load for load in loads if load.role is not Role.PREFILL and load.num_blocks >= num_needed and load.is_accepting
    ]
    return able or [load for load in loads if load.num_blocks >= num_needed and load.is_accepting]


def able_readers(loads: Sequence[WorkerLoad]) -> list[WorkerLoad]:
    """Return who may read prompts for others."""
    return [load for load in loads if load.role is Role.PREFILL and load.is_accepting]


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


def shortest_queues(readers: Sequence[WorkerLoad], question: Question, rules: Rules) -> list[Reader]:
    """Return the readers that will be done first with what they have to read already, and those with long prefixes."""
    return [as_reader(load, question, rules) for load in few_readers(readers, question)]


def as_reader(load: WorkerLoad, question: Question, rules: Rules) -> Reader:
    """Return a worker as a reader of the prompt."""
    return Reader.of(load, rules.slo, question.num_answer_tokens, question.num_cached(load.worker_id))


def few_readers(readers: Sequence[WorkerLoad], question: Question) -> Sequence[WorkerLoad]:
    """Return the readers that are looked at: short queues, and long prefixes, which count for owners elsewhere."""
    few = few_shortest(readers)
    if len(few) == len(readers) or len({load.node for load in readers}) == 1:
        return few
    chosen = {load.worker_id for load in few}
    return [*few, *(load for load in longest_prefixes(readers, question) if load.worker_id not in chosen)]


def few_shortest(readers: Sequence[WorkerLoad]) -> Sequence[WorkerLoad]:
    """Return a few readers of each machine with the shortest queues in seconds, answers of their own not counted."""
    if len(readers) <= MOST_READERS:
        return readers
    nodes = {load.node for load in readers}
    idle = [load for load in readers if not (load.num_queued_tokens or load.num_queued_pairs)]
    if len(idle) >= MOST_READERS and len(nodes) == 1:  # nobody's queue is shorter
        return nsmallest(MOST_READERS, idle, key=attrgetter("worker_id"))
    # Most workers share one cost model.
    models = {id(load.costs): load.costs for load in readers}
    token_s = {key: costs.prefill_s(CHUNK_TOKENS, 0, CHUNK_TOKENS) / CHUNK_TOKENS for key, costs in models.items()}
    # Tuples are compared faster than a key is asked for; two workers never have one id.
    queues = [
        (
            (load.num_queued_tokens * token_s[id(load.costs)] + load.num_queued_pairs * load.costs.pair_s)
            * load.cost_scale,
            load.worker_id,
            index,
        )
        for index, load in enumerate(readers)
    ]
    near: dict[NodeId, list[tuple[float, WorkerId, int]]] = {}
    if len(nodes) == 1:
        near[readers[0].node] = queues
    else:
        for load, queue in zip(readers, queues, strict=True):
            near.setdefault(load.node, []).append(queue)
    return [readers[index] for own in near.values() for _, _, index in nsmallest(MOST_READERS, own)]


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
