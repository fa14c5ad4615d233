"""Log-probabilities are those of a plain softmax, and the likeliest tokens those of a plain sort."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.worker.sampling.logprobs import chunk_logprobs, token_logprobs
from diptych.worker.sampling.ranking import Floats, kth_highest, likeliest_tokens


def random_row(seed: int, vocab_size: int = 1000, scale: float = 3.0) -> Floats:
    return np.random.default_rng(seed).normal(0, scale, vocab_size).astype(np.float32)


@given(st.integers(0, 1000), st.floats(0.01, 40), st.integers(0, 20))
def test_as_a_plain_softmax_says(seed: int, scale: float, num_top: int) -> None:
    row = random_row(seed, scale=scale)
    exact = row.astype(np.float64)
    exact -= exact.max() + np.log(np.exp(exact - exact.max()).sum())
    token_id = seed % 1000

    told = token_logprobs(row, token_id, num_top)

    assert told.logprob == pytest.approx(exact[token_id], abs=1e-4)
    assert told.rank == 1 + (row > row[token_id]).sum()
    assert [token for token, _ in told.top] == np.argsort(-row, kind="stable")[:num_top].tolist()
    assert [logprob for _, logprob in told.top] == pytest.approx(exact[np.argsort(-row)[:num_top]].tolist(), abs=1e-4)


def test_equal_logits_are_ordered_by_their_ids() -> None:
    row = np.zeros(100, np.float32)
    row[70] = 1.0
    assert likeliest_tokens(row, 4) == [70, 0, 1, 2]
    assert kth_highest(row, 1) == 1.0
    assert kth_highest(row, 2) == 0.0
    assert likeliest_tokens(row, 1000) == [70, *range(70), *range(71, 100)]


def test_tokens_that_are_ruled_out_may_be_among_the_likeliest_of_a_small_vocabulary() -> None:
    row = np.array([-np.inf, 2.0, -np.inf, 1.0], np.float32)
    assert likeliest_tokens(row, 3) == [1, 3, 0]


@pytest.mark.parametrize(("begin", "num_rows", "num_known"), [(0, 4, 4), (4, 4, 4), (8, 2, 1), (9, 1, 0)])
def test_a_chunk_tells_of_the_tokens_after_its_own(begin: int, num_rows: int, num_known: int) -> None:
    prompt = [5, 17, 900, 3, 3, 8, 44, 2, 61, 7]
    logits = np.stack([random_row(seed) for seed in range(num_rows)])

    told = chunk_logprobs(logits, prompt, begin, 2)

    expected = [token_logprobs(logits[i], prompt[begin + 1 + i], 2) for i in range(num_known)]
    assert told == expected


@pytest.mark.parametrize("floor", [-np.inf, -20.0, 0.0])
def test_the_kth_highest_among_many_that_are_alike(floor: float) -> None:
    row = np.full(1000, floor, np.float32)
    row[[3, 500, 900, 901]] = [5.0, 4.0, 2.5, 2.5]
    descending = np.sort(row)[::-1]
    for k in range(1, 12):
        assert kth_highest(row, k) == descending[k - 1]
