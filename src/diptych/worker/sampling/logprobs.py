"""Log-probabilities as clients ask for them: of the model itself, before temperature, penalties and bans."""

from collections.abc import Sequence

import numpy as np

from diptych.core.request import TokenLogprobs
from diptych.worker.sampling.ranking import Floats, likeliest_tokens


def token_logprobs(logits: Floats, token_id: int, num_top: int) -> TokenLogprobs:
    """Return how likely `token_id` was under `logits` [vocab_size], and the `num_top` likeliest tokens."""
    highest = logits.max()
    norm = float(highest) + float(np.log(np.exp(logits - highest).sum(dtype=np.float64)))
    rank = int((logits > logits[token_id]).sum()) + 1
    top = [(token, float(logits[token]) - norm) for token in likeliest_tokens(logits, num_top)]
    return TokenLogprobs(float(logits[token_id]) - norm, rank, top)


def chunk_logprobs(logits: Floats, prompt_token_ids: Sequence[int], begin: int, num_top: int) -> list[TokenLogprobs]:
    """Return how likely the tokens of a prompt were that follow those of a chunk.

    `logits` [chunk tokens, vocab_size] are of the chunk that starts at `begin`. The last token of a prompt is followed
    by none that is known.
    """
    next_token_ids = prompt_token_ids[begin + 1 : begin + 1 + len(logits)]
    return [token_logprobs(logits[row], token_id, num_top) for row, token_id in enumerate(next_token_ids)]
