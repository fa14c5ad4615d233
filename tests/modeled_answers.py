"""What the modeled engine must answer, known without any server."""

import random
from collections.abc import Sequence

from diptych.engine.modeled_engine import FIRST_TOKEN_ID, expected_tokens
from diptych.frontend.text.tokenizer import Tokenizer

VOCAB_SIZE = 49152


def make_prompt(num_tokens: int, seed: int) -> list[int]:
    """Return a prompt of so many tokens; the same for the same seed."""
    draw = random.Random(seed)
    return [draw.randrange(FIRST_TOKEN_ID, VOCAB_SIZE) for _ in range(num_tokens)]


def expected_text(tokenizer: Tokenizer, prompt: Sequence[int], num_tokens: int) -> str:
    """Return the greedy answer to a prompt, of so many tokens."""
    return tokenizer.decode(expected_tokens(prompt, num_tokens, VOCAB_SIZE))
