"""Routes with a copy of somebody else's prefix in front."""

from collections.abc import Iterator, Mapping, Sequence

from diptych.core.ids import NodeId, WorkerId
from diptych.policy.copying import is_much_longer, predict_copy_s
from diptych.policy.nodes import can_copy
from diptych.policy.pairing import Pair, Reader, WorkerLoad, predict_pair
from diptych.policy.routing.candidates import soonest_reader
from diptych.policy.routing.question import Copy, Question, Route, Rules


def best_holders(question: Question, loads: Sequence[WorkerLoad]) -> Mapping[NodeId, WorkerId]:
    """Return which accepting worker of each machine has the longest part of the prompt in its cache, if any has.

    Who writes no answers lends nothing: what it has read for other machines is of use to itself alone.
    """
    matched = question.matched_tokens
    holders = [load for load in loads if load.worker_id in matched and load.is_accepting and load.num_blocks]
    holders.sort(key=lambda load: (-matched[load.worker_id], load.worker_id))
    best: dict[NodeId, WorkerId] = {}
    for load in holders:
        best.setdefault(load.node, load.worker_id)
    return best


def holder_for(owner: WorkerLoad, holders: Mapping[NodeId, WorkerId]) -> WorkerId | None:
    """Return from whose cache an owner may copy; None: from nobody's but its own."""
    for node, worker_id in holders.items():
        if can_copy(node, owner.node):
            return None if worker_id == owner.worker_id else worker_id
    return None


def routes_with(
    owner: WorkerLoad, queues: Sequence[Reader], holders: Mapping[NodeId, WorkerId], question: Question, rules: Rules
) -> Iterator[Route]:
    """Yield the routes to an owner: by what it has cached, and after a copy from a holder if that has much more."""
    cached = question.num_cached(owner.worker_id)
    yield Route.of(_predict(owner, queues, cached, question, rules))
    holder = holder_for(owner, holders)
    if holder is None:
        return
    copy = plan_copy(owner, holder, question, rules)
    if copy is not None:
        pair = _predict(owner, queues, question.num_cached(holder), question, rules)
        yield Route.of(delayed(pair, copy.copy_s), copy)


def plan_copy(owner: WorkerLoad, holder: WorkerId, question: Question, rules: Rules) -> Copy | None:
    """Return the copy of what `holder` has and `owner` has not; None if that is too little."""
    there = question.matched_tokens.get(holder, 0) // rules.block_size
    here = question.matched_tokens.get(owner.worker_id, 0) // rules.block_size
    if not is_much_longer(there, here, rules.balancing_threshold):
        return None
    is_writing = owner.num_answers > 0
    return Copy(holder, there, predict_copy_s(there - here, owner.copy_block_s, is_writing=is_writing))


def delayed(pair: Pair, delay_s: float) -> Pair:
    """Return a prediction for a pair that begins later."""
    return pair._replace(ttft_s=pair.ttft_s + delay_s, least_ttft_s=pair.least_ttft_s + delay_s)


def _predict(owner: WorkerLoad, queues: Sequence[Reader], num_cached: int, question: Question, rules: Rules) -> Pair:
    reader = soonest_reader(owner, num_cached, queues, question, rules)
    answer = question.num_answer_tokens
    return predict_pair(owner, reader, question.num_prompt_tokens, num_cached, rules.slo, answer)
