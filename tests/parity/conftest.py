"""Prompts of natural text, and the engine itself in this process: no scheduler, no hand-over, no cache."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.parity.reference import BareEngine, bound_engine

from diptych.frontend.text.tokenizer import Tokenizer

PROMPTS = (
    "The lighthouse keeper",
    "Write a short letter to a friend about a walk in the rain.\n\nDear Anna,",
    "Question: Why does bread rise when it is baked?\nAnswer: Bread rises because",
    "In the spring of that year the river left its bed and covered the fields up to the church. The miller, who had "
    "seen such floods before, moved his grain to the upper floor and waited. On the third day a boat came by, rowed by "
    "two children who would not say where they lived. He gave them bread and asked about the bridge. The older one",
    "def moving_average(values, window):\n    " + '"""Return the mean of each run of `window` values."""\n    ',
    "The following is a history of the town, from its founding to the present day. "
    + " ".join(
        f"In the year {year}, the council met {year % 7 + 2} times and spent {year * 3 % 1000} crowns on the {what}; "
        f"the winter was {'mild' if year % 3 else 'hard'}, and the harvest {'good' if year % 2 else 'poor'}."
        for year, what in zip(
            range(1601, 1609), ("walls", "market", "school", "well", "tower", "mill", "bridge", "gate"), strict=True
        )
    ),
)
"""From 3 to about 300 tokens, the longest more than one chunk."""


@pytest.fixture(scope="session")
def prompts(tokenizer: Tokenizer) -> list[list[int]]:
    return [tokenizer.encode(prompt) for prompt in PROMPTS]


@pytest.fixture(scope="session")
def bare_engine(model_dir: Path) -> Iterator[BareEngine]:
    engine = bound_engine(model_dir, "f32")
    yield engine
    os.close(engine.descriptor)


@pytest.fixture(scope="session")
def reference_answers(bare_engine: BareEngine, prompts: list[list[int]]) -> list[list[int]]:
    """100 greedy tokens for each prompt, each prompt read in one piece."""
    return bare_engine.greedy_answers(prompts, 100, [1024] * len(prompts))
