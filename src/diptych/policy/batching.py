"""Which sequences take part in the next step, and with how many tokens. Pure.

First come, first served, in chunks: a prefill step takes prompt tokens up to the length that saturates the device
(DistServe, OSDI 2024, section 4.3, calls it L_m), the last prompt in part. While answers are being written by the same
worker, the prompt's share shrinks so that a step stays short (Sarathi-Serve's stall-free batching, OSDI 2024): by a
fixed number of tokens, or by what a cost model says fits in before the next token of any answer is due.
"""

from collections.abc import Iterable, Sequence

from diptych.core.cost_model import CostModel, StepWork
from diptych.core.messages import Role

MIN_CHUNK_TOKENS = 2
"""A prompt is never computed one token at a time: kernels for one row round differently, and answers must not depend on
how a prompt was cut."""


def plan_chunks(remaining_tokens: Sequence[int], budget_tokens: int) -> list[int]:
    """Return how many tokens of each prompt to compute in the next step; the list may be shorter than the queue.

    `remaining_tokens`: uncomputed tokens of each waiting prompt, in the order of service. At most one token more than
    `budget_tokens` is planned in all (where a single token would be left over otherwise).
    """
    chunks: list[int] = []
    for num_remaining in remaining_tokens:
        num_tokens = min(num_remaining, budget_tokens)
        if num_tokens == num_remaining - 1:  # would leave one token
            num_tokens = num_remaining if num_tokens <= MIN_CHUNK_TOKENS else num_tokens - 1
        if num_tokens < min(MIN_CHUNK_TOKENS, num_remaining):
            break
        chunks.append(num_tokens)
        budget_tokens -= num_tokens
        if num_tokens < num_remaining or budget_tokens <= 0:
            break
    return chunks


def prefill_budget_tokens(num_decode_rows: int, chunk_tokens: int, decode_chunk_tokens: int) -> int:
    """Return how many prompt tokens a step may take that also continues `num_decode_rows` answers."""
    if num_decode_rows == 0:
        return chunk_tokens
    return max(decode_chunk_tokens - num_decode_rows, MIN_CHUNK_TOKENS)


AIM = 0.95
"""Tokens are due after this share of the time that the SLO leaves them: steps take a little longer than predicted."""
ANSWERS_SHARE = {Role.DECODE: 0.95, Role.MIXED: 0.75, Role.PREFILL: 0.5}
"""How much of a token's time the answers of a worker may take: what is left is for prompts, and for mistakes."""
LONGEST_STEP_TPOTS = 4.0
"""However far ahead of its time an answer is: it shall be written in a steady flow, not in bursts."""
LOST_TPOTS = 8.0
"""An answer that is so far behind will not catch up; nobody else is held back for it."""
SMALLEST_CHUNK_TOKENS = 16
"""Room for fewer tokens of a prompt is not worth the price of a longer step."""


def next_due_s(first_token_s: float, num_tokens: int, tpot_s: float) -> float:
    """Return when the next token of an answer that has `num_tokens` must come for its mean TPOT to be `tpot_s`.

    An answer that has been written faster than that has time in hand, which a longer step may use.
    """
    return first_token_s + num_tokens * tpot_s * AIM


def step_limit_s(dues_s: Iterable[float], now_s: float, tpot_s: float) -> float:
    """Return how long a step may take that starts now and continues answers whose next tokens are due at `dues_s`."""
    slacks_s = [due_s - now_s for due_s in dues_s if due_s > now_s - LOST_TPOTS * tpot_s]
    return min([*slacks_s, LONGEST_STEP_TPOTS * tpot_s])


def paced_budget_tokens(  # noqa: PLR0913
    costs: CostModel, answers: StepWork, num_past: int, limit_s: float, chunk_tokens: int, *, is_urgent: bool
) -> int:
    """Return how many prompt tokens fit beside `answers` into a step of `limit_s`; the first prompt has `num_past`.

    0 if so few fit that the step had better go without; an urgent prompt always gets a little.
    """
    if answers.num_rows == 0:
        return chunk_tokens
    num_tokens = costs.largest_chunk(answers, num_past, limit_s, chunk_tokens)
    if num_tokens >= SMALLEST_CHUNK_TOKENS:
        return num_tokens
    return SMALLEST_CHUNK_TOKENS if is_urgent else 0


OLDEST_SHARE = 0.95
"""Answers of which more than this is thought to be written are taken for ones of which so much is."""


def answers_when_read(  # noqa: PLR0913, PLR0917
    num_answers: float,
    num_unread: float,
    wait_s: float,
    read_each_s: float,
    answer_s: float,
    written_share: float = 0.5,
    longer: float = 1.0,
) -> float:
    """Return how many answers a worker will be writing after `wait_s`, when a prompt has been read.

    Those of now, of which `written_share` is written on average, end one by one, each after `longer` times `answer_s`
    in all. Of the `num_unread` before it, those are still being written whose prompts were read less than an answer's
    time before, at one prompt in `read_each_s`.

    See: Mooncake (Qin et al., arXiv 2407.00079, section 7): a uniform time for each answer, from its own beginning. We
    know the mean of how far they are and spread them evenly around it.
    """
    answer_s = max(answer_s, 1e-9)
    mean = min(written_share, OLDEST_SHARE)
    youngest, oldest = max(2.0 * mean - 1.0, 0.0), min(2.0 * mean, 1.0)
    last_to_stay = 1.0 - wait_s / (longer * answer_s)
    staying = min(max((last_to_stay - youngest) / max(oldest - youngest, 1e-9), 0.0), 1.0)
    return num_answers * staying + min(num_unread, answer_s / max(read_each_s, 1e-9))


def has_room(num_answers: float, mean_context_tokens: float, costs: CostModel, limit_s: float) -> bool:
    """Tell whether a worker shall take on one more answer when it will be writing `num_answers`.

    Answers beyond that wait before their prompts are read, where they have time until the first token is due, and not
    behind it, where all would be written too slowly.
    """
    return costs.answers_s(num_answers + 1, mean_context_tokens) <= limit_s


def choose_victim(arrival_order: Sequence[int]) -> int:
    """Return the index of the sequence that loses its blocks when they run out: the last to arrive.

    The oldest is thus never preempted while others run, so it ends, and so does every request after it.
    """
    return max(range(len(arrival_order)), key=lambda index: arrival_order[index])
