"""The default: the pair that keeps to the SLO at the least price (policy/pairing.py), and a copy where it helps."""

from collections.abc import Sequence

from diptych.policy.pairing import Reader, WorkerLoad, choose_pair, predict_pair
from diptych.policy.routing.question import Chance, Question, Route, Rules
from diptych.policy.routing.replication import best_holder, delayed, plan_copy


def predicted(question: Question, loads: Sequence[WorkerLoad], rules: Rules, turn: int, chance: Chance) -> Route | None:
    """Choose by the SLO and the price; then copy what another worker has more of the prompt, if that is sooner.

    Copies do not change the choice: they make good what it has left elsewhere.
    """
    pair = choose_pair(
        question.num_prompt_tokens,
        question.matched_tokens,
        loads,
        rules.slo,
        question.num_answer_tokens,
        question.num_most_tokens,
        rules.block_size,
        rules.local_prefill_max_tokens,
    )
    if pair is None:
        return None
    holder = best_holder(question, loads)
    if holder is None or holder == pair.owner:
        return Route(pair)
    by_id = {load.worker_id: load for load in loads if load.worker_id in {pair.owner, pair.reader}}
    owner, answer = by_id[pair.owner], question.num_answer_tokens
    copy = plan_copy(owner, holder, question, rules)
    if copy is None:
        return Route(pair)
    reader = Reader.of(by_id[pair.reader], rules.slo, answer)
    cached = question.num_cached(holder)
    after_copy = delayed(
        predict_pair(owner, reader, question.num_prompt_tokens, cached, rules.slo, answer), copy.copy_s
    )
    return Route(after_copy, copy) if after_copy.ttft_s < pair.ttft_s else Route(pair)
