"""Prompts that no prefix cache has seen, the same ones for the same seed."""

import random

# fmt: off
WORDS = (
    "river", "mountain", "garden", "window", "letter", "morning", "winter", "bridge", "market", "engine", "harbor",
    "village", "forest", "silver", "music", "paper", "island", "kitchen", "teacher", "doctor", "friend", "travel",
    "story", "number", "color", "voice", "table", "stone", "light", "shadow", "summer", "evening", "road", "ship",
    "cloud", "flower", "horse", "castle", "lantern", "mirror", "pencil", "basket", "orange", "copper", "planet",
    "signal", "valley", "meadow", "tower", "train",
)
# fmt: on
FIRST_TOKEN_ID, NUM_TOKEN_IDS = 1_000, 40_000
"""Ordinary tokens in any vocabulary of the size of SmolLM2's."""


class Prompts:
    """An endless supply."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def token_ids(self, num_tokens: int) -> list[int]:
        """Return a prompt of exactly so many tokens: noise, where only its length matters."""
        return [FIRST_TOKEN_ID + self._random.randrange(NUM_TOKEN_IDS) for _ in range(num_tokens)]

    def text(self, num_words: int) -> str:
        """Return words (about a token each), and what makes a model go on in ordinary text."""
        words = " ".join(self._random.choice(WORDS) for _ in range(num_words))
        return f"{words}. Here is a long story about all of this. Once upon a time"
