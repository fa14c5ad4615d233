"""The default: the pair that keeps to the SLO at the least price (policy/pairing.py), and a copy where it helps."""

from collections.abc import Sequence

from diptych.policy.pairing import WorkerLoad, choose_pair, predict_pair
from diptych.policy.routing.candidates import able_owners, as_reader, busy, few_readers, longest_prefixes
from diptych.policy.routing.question import Chance, Question, Route, Rules
from diptych.policy.routing.replication import best_holders, delayed, holder_for, plan_copy

MOST_LOOKED_AT = 24
NUM_SPREAD = 8


def predicted(question: Question, loads: Sequence[WorkerLoad], rules: Rules, turn: int, chance: Chance) -> Route | None:
    """Choose by the SLO and the price; then copy what another worker has more of the prompt, if that is sooner.

    Copies do not change the choice: they make good what it has left elsewhere.
    """
    pair = choose_pair(
        question.num_prompt_tokens,
        question.matched_tokens,
        _looked_at(question, loads, rules),
        rules.slo,
        question.num_answer_tokens,
        question.num_most_tokens,
        rules.block_size,
        rules.local_prefill_max_tokens,
    )
    if pair is None:
        return None
    holders = best_holders(question, loads)
    if not holders:
        return Route.of(pair)
    by_id = {load.worker_id: load for load in loads if load.worker_id in {pair.owner, pair.reader}}
    owner, answer = by_id[pair.owner], question.num_answer_tokens
    holder = holder_for(owner, holders)
    if holder is None:
        return Route.of(pair)
    copy = plan_copy(owner, holder, question, rules)
    if copy is None:
        return Route.of(pair)
    reader = as_reader(by_id[pair.reader], question, rules)
    cached = question.num_cached(holder)
    after_copy = delayed(
        predict_pair(owner, reader, question.num_prompt_tokens, cached, rules.slo, answer), copy.copy_s
    )
    return Route.of(after_copy, copy) if after_copy.ttft_s < pair.ttft_s else Route.of(pair)


def _looked_at(question: Question, loads: Sequence[WorkerLoad], rules: Rules) -> Sequence[WorkerLoad]:
    """Return the workers of which pairs are made: all, or a few where there are many.

    Those with long prefixes, some that have much to do and some that have little (answers are cheapest where there are
    some already), and the shortest queues.
    """
    if len(loads) <= MOST_LOOKED_AT:
        return loads
    owners = sorted(able_owners(question, loads, rules), key=busy)
    some = owners[:: -(-len(owners) // NUM_SPREAD)] if owners else []
    chosen = (*longest_prefixes(owners, question), *some, *few_readers(loads, question))
    return list({load.worker_id: load for load in chosen}.values())
