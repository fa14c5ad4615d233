"""Which sequences take part in the next step, and with how many tokens. Pure.

First come, first served, in chunks: a prefill step takes prompt tokens up to the length that saturates the device
(DistServe, OSDI 2024, section 4.3, calls it L_m), the last prompt in part. While answers are being written by the same
worker, the prompt's share shrinks so that a step stays short (Sarathi-Serve's stall-free batching, OSDI 2024).
"""

from collections.abc import Sequence

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


def choose_victim(arrival_order: Sequence[int]) -> int:
    """Return the index of the sequence that loses its blocks when they run out: the last to arrive.

    The oldest is thus never preempted while others run, so it ends, and so does every request after it.
    """
    return max(range(len(arrival_order)), key=lambda index: arrival_order[index])
