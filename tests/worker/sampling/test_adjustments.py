"""What requests do to logits: bans, biases and penalties, each as its definition says."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.core.request import SamplingParams
from diptych.worker.sampling.adjustments import Adjustments, TokenCounts
from diptych.worker.sampling.ranking import Floats

VOCAB_SIZE = 50
PROMPT = [3, 4, 4, 7]


def adjusted(said: list[int], ending: tuple[int, ...] = (), **wanted: Any) -> Floats:
    """Return the row of logits 1.0 (odd tokens) and -1.0 (even ones) as it is for the token after `said`."""
    params = SamplingParams(max_tokens=99, **wanted)
    assert Adjustments.may_be_needed(params)
    adjustments = Adjustments(params, PROMPT, ending, VOCAB_SIZE)
    for token_id in said:
        adjustments.on_token(token_id)
    logits = np.where(np.arange(VOCAB_SIZE) % 2, 1.0, -1.0).astype(np.float32)
    adjustments.apply(logits)
    return logits


PLAIN = np.where(np.arange(VOCAB_SIZE) % 2, 1.0, -1.0).astype(np.float32)


def test_nothing_is_needed_for_a_plain_request() -> None:
    assert not Adjustments.may_be_needed(SamplingParams(max_tokens=1, temperature=0.3, top_p=0.5, top_k=3, min_p=0.1))


def test_presence_penalty_counts_once_and_the_prompt_not_at_all() -> None:
    logits = adjusted([5, 5, 5, 8], presence_penalty=0.25)
    assert logits[5] == 0.75
    assert logits[8] == -1.25
    assert logits[3] == 1.0


def test_frequency_penalty_counts_each_time() -> None:
    logits = adjusted([5, 5, 5, 8], frequency_penalty=0.25)
    assert logits[5] == 0.25
    assert logits[8] == -1.25
    assert logits[4] == -1.0


def test_negative_penalties_encourage() -> None:
    assert adjusted([5], presence_penalty=-0.5, frequency_penalty=-0.5)[5] == 2.0


def test_repetition_penalty_makes_prompt_and_answer_less_likely_whatever_the_sign() -> None:
    logits = adjusted([5, 5, 8], repetition_penalty=2.0)
    assert logits[[5, 3, 7]].tolist() == [0.5, 0.5, 0.5]
    assert logits[[8, 4]].tolist() == [-2.0, -2.0]
    assert (np.delete(logits, [3, 4, 5, 7, 8]) == np.delete(PLAIN, [3, 4, 5, 7, 8])).all()


def test_bias_is_added_and_unknown_tokens_are_passed_over() -> None:
    logits = adjusted([], logit_bias={5: -100, 8: 3.5, 4711: 1.0})
    assert logits[5] == -99
    assert logits[8] == 2.5


def test_only_allowed_tokens_are_left() -> None:
    logits = adjusted([], allowed_token_ids=[5, 6, 4711])
    assert np.flatnonzero(np.isfinite(logits)).tolist() == [5, 6]
    assert logits[5] == 1.0


def test_min_tokens_holds_back_what_would_end_the_answer() -> None:
    for said, is_banned in (([], True), ([1], True), ([1, 2], False)):
        logits = adjusted(said, (0, 9), min_tokens=2)
        assert np.isinf(logits[[0, 9]]).all() == is_banned
        assert np.isfinite(np.delete(logits, [0, 9])).all()


@pytest.mark.parametrize(
    ("said", "banned"),
    [([], {9}), ([5], {6, 9}), ([5, 6], {9}), ([6], {9}), ([1, 2, 3], {4, 9}), ([2, 3], {9}), ([1, 2, 3, 5], {6, 9})],
)
def test_bad_words_lose_their_last_token_once_the_others_are_there(said: list[int], banned: set[int]) -> None:
    logits = adjusted(said, bad_words=[[9], [5, 6], [1, 2, 3, 4]])
    assert set(np.flatnonzero(np.isinf(logits)).tolist()) == banned


def test_a_bias_does_not_bring_back_what_is_ruled_out() -> None:
    logits = adjusted([], (0,), min_tokens=1, allowed_token_ids=[0, 5], logit_bias={0: 100.0, 6: 100.0})
    assert np.flatnonzero(np.isfinite(logits)).tolist() == [5]


@given(st.lists(st.integers(0, 300), max_size=400))
def test_counts_are_right_whatever_comes(token_ids: list[int]) -> None:
    counts = TokenCounts(token_ids)
    counted = dict(zip(counts.token_ids.tolist(), counts.counts.tolist(), strict=True))
    assert counted == {token_id: token_ids.count(token_id) for token_id in set(token_ids)}
