"""Tokens are drawn from exactly the distribution that the request asks for, and from nothing but seed and position."""

from collections.abc import Sequence
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.core.errors import EngineError
from diptych.core.request import SamplingParams
from diptych.worker.sampling import draw
from diptych.worker.sampling.chooser import TokenChooser, choose_tokens
from diptych.worker.sampling.draw import Position, gumbel, random_bits

NUM_DRAWS = 4000
Floats = npt.NDArray[np.float32]


def params(**settings: float) -> SamplingParams:
    return SamplingParams(max_tokens=10**6, **settings)  # type: ignore[arg-type]


def chooser(wanted: SamplingParams, index: int = 0, choice: int = 0) -> TokenChooser:
    """Return the chooser of an answer that has `index` tokens."""
    made = TokenChooser(wanted, choice=choice, prompt_token_ids=[1], eos_token_ids=[], vocab_size=300_000)
    for _ in range(index):
        made.on_token(0)
    return made


def sample(logits: Floats, draws: Sequence[tuple[SamplingParams, int]]) -> list[int]:
    """Return the token that is drawn from each row, for requests and the lengths of their answers so far."""
    results = choose_tokens(logits, [(row, chooser(wanted, index)) for row, (wanted, index) in enumerate(draws)])
    tokens: list[int] = []
    for result in results:
        if isinstance(result, EngineError):
            raise result
        tokens.append(result.token_id)
    return tokens


def random_logits(num_rows: int, vocab_size: int, seed: int, scale: float = 2.0) -> Floats:
    return np.random.default_rng(seed).normal(0, scale, (num_rows, vocab_size)).astype(np.float32)


def exact_probabilities(logits: Floats, wanted: SamplingParams) -> npt.NDArray[np.float64]:
    """Return the probability of each token, computed in the plainest way: sort everything, drop, renormalize."""
    scaled = logits.astype(np.float64) / wanted.temperature
    weights = np.exp(scaled - scaled.max())
    by_likelihood = sorted(range(len(weights)), key=lambda token: -weights[token])
    kept = [token for token in by_likelihood if weights[token] >= wanted.min_p]
    if wanted.top_k:
        kept = kept[: wanted.top_k]
    total, reached, nucleus = sum(weights[token] for token in kept), 0.0, []
    for token in kept:
        nucleus.append(token)
        reached += weights[token]
        if reached >= wanted.top_p * total and wanted.top_p < 1:
            break
    probabilities = np.zeros(len(weights))
    probabilities[nucleus] = weights[nucleus]
    exact: npt.NDArray[np.float64] = probabilities / probabilities.sum()
    return exact


def draw_counts(logits: Floats, wanted: SamplingParams) -> npt.NDArray[np.int64]:
    rows = np.broadcast_to(logits, (NUM_DRAWS, len(logits)))
    tokens = sample(rows, [(wanted, index) for index in range(NUM_DRAWS)])
    return np.bincount(tokens, minlength=len(logits))


@pytest.mark.parametrize(
    "wanted",
    [
        params(),
        params(temperature=0.5),
        params(temperature=1.7),
        params(top_k=5),
        params(top_k=1),
        params(top_p=0.8),
        params(top_p=0.3, temperature=1.5),
        params(min_p=0.1),
        params(min_p=0.02, top_k=12, top_p=0.9, temperature=1.2),
    ],
    ids=str,
)
def test_tokens_come_as_often_as_they_should(wanted: SamplingParams) -> None:
    logits = random_logits(1, 40, seed=7)[0]
    probabilities = exact_probabilities(logits, wanted)

    counts = draw_counts(logits, wanted)

    possible = probabilities > 0
    assert not counts[~possible].any(), "a token was drawn that had been dropped"
    expected = NUM_DRAWS * probabilities[possible]
    chi_square = float(((counts[possible] - expected) ** 2 / expected).sum())
    freedom = int(possible.sum()) - 1
    # Six standard deviations above the mean of a chi-square: seeds are fixed, so this either always or never holds.
    assert chi_square <= freedom + 6 * np.sqrt(2 * freedom)


def test_another_seed_draws_other_tokens() -> None:
    rows = np.zeros((200, 1000), np.float32)
    first = sample(rows, [(params(seed=1), index) for index in range(200)])
    second = sample(rows, [(params(seed=2), index) for index in range(200)])

    assert sum(a == b for a, b in zip(first, second, strict=True)) < 10


@given(st.integers(1, 6), st.integers(2, 60), st.integers(0, 2**32))
def test_greedy_takes_the_likeliest_token(num_rows: int, vocab_size: int, seed: int) -> None:
    logits = random_logits(num_rows, vocab_size, seed)

    tokens = sample(logits, [(params(temperature=0, seed=seed), 5)] * num_rows)

    assert tokens == [int(np.argmax(row)) for row in logits]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.builds(
            params,
            temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
            top_p=st.sampled_from([0.1, 0.9, 1.0]),
            top_k=st.sampled_from([0, 1, 10]),
            min_p=st.sampled_from([0.0, 0.05]),
            seed=st.integers(-(2**63), 2**64),
        ),
        min_size=1,
        max_size=6,
    ),
    st.randoms(use_true_random=False),
)
def test_a_token_does_not_depend_on_the_batch(requests: list[SamplingParams], chance: Random) -> None:
    logits = random_logits(len(requests), 500, seed=3)
    indices = list(range(len(requests)))
    alone = [sample(logits[row : row + 1], [(requests[row], row * 7)])[0] for row in indices]
    chance.shuffle(indices)

    together = sample(logits[indices], [(requests[row], row * 7) for row in indices])

    assert together == [alone[row] for row in indices]


@pytest.mark.parametrize("damage", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_an_error(damage: float, temperature: float) -> None:
    logits = random_logits(3, 50, seed=1)
    logits[1, 20] = damage

    with pytest.raises(EngineError, match="no numbers"):
        sample(logits, [(params(temperature=temperature), 0)] * 3)


def test_a_row_that_rules_out_every_token_is_an_error() -> None:
    with pytest.raises(EngineError, match="no numbers"):
        sample(np.full((1, 50), -np.inf, np.float32), [(params(), 0)])


def test_a_token_with_a_logit_of_minus_infinity_is_never_drawn() -> None:
    logits = np.full(6, -np.inf, np.float32)
    logits[[1, 4]] = 0.0

    counts = draw_counts(logits, params(temperature=2.0))

    assert set(np.flatnonzero(counts)) == {1, 4}


def test_a_flat_distribution_keeps_exactly_the_wanted_share() -> None:
    vocab_size = 1000
    logits = np.arange(vocab_size, dtype=np.float32) * np.float32(1e-4)  # nearly uniform, the last the likeliest
    num_kept = int((exact_probabilities(logits, params(top_p=0.75)) > 0).sum())
    assert 700 < num_kept < 760

    tokens = np.flatnonzero(draw_counts(logits, params(top_p=0.75)))

    assert vocab_size - num_kept <= tokens.min() < vocab_size - num_kept + 10


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-46, 1e-300, 5e-324])
@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_a_tiny_temperature_is_as_good_as_none(temperature: float, top_p: float) -> None:
    logits = random_logits(4, 100, seed=11)

    tokens = sample(logits, [(params(temperature=temperature, top_p=top_p, seed=9), index) for index in range(4)])

    assert tokens == [int(np.argmax(row)) for row in logits]


@pytest.mark.parametrize("setting", [{"top_p": 1e-12}, {"top_k": 1}, {"min_p": 1.0}], ids=str)
def test_the_tightest_settings_leave_the_likeliest_token(setting: dict[str, float]) -> None:
    logits = random_logits(4, 100, seed=12)

    tokens = sample(logits, [(params(**setting), index) for index in range(4)])

    assert tokens == [int(np.argmax(row)) for row in logits]


def test_a_huge_vocabulary() -> None:
    vocab_size = 300_000
    logits = np.zeros((1, vocab_size), np.float32)
    rows = [sample(logits, [(params(top_p=top_p), index)])[0] for top_p in (1.0, 0.99) for index in range(20)]

    assert all(0 <= token < vocab_size for token in rows)
    assert np.std(rows) > vocab_size / 10, "equal logits draw from the whole vocabulary"


def test_the_choice_is_that_over_the_whole_vocabulary() -> None:
    """Only contenders are looked at; no other token could have won."""
    for seed in range(60):
        logits = random_logits(1, 20_000, seed, scale=1 + seed % 5)
        for temperature in (0.3, 1.0, 2.0, 30.0):
            noise = gumbel(random_bits(Position(seed, 0, 7), 20_000))
            winner = int((logits[0].astype(np.float64) / temperature + noise).argmax())

            assert sample(logits, [(params(temperature=temperature, seed=seed), 7)]) == [winner]


@pytest.mark.parametrize("wanted", [params(), params(top_p=0.95), params(top_k=40), params(temperature=1.5)], ids=str)
def test_rounding_errors_hardly_ever_change_a_token(wanted: SamplingParams) -> None:
    """Other kernels for the same row move logits by about 2e-5, and answers must not depend on the path."""
    logits = random_logits(4, 49_152, seed=5, scale=3.0)
    logits[:, 77] += 14  # some tail, as natural text has
    moved = logits + random_logits(4, 49_152, seed=6, scale=2e-5)
    draws = [(wanted, index) for index in range(250)]

    changed = sum(
        token != token_of_moved
        for row in range(4)
        for token, token_of_moved in zip(
            sample(logits[[row] * 250], draws), sample(moved[[row] * 250], draws), strict=True
        )
    )

    assert changed <= 1, "of 1,000 tokens"


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("bits", [0, 2**32 - 1])
def test_no_noise_draws_what_is_ruled_out(monkeypatch: pytest.MonkeyPatch, seed: int, bits: int) -> None:
    logits = random_logits(1, 1000, seed)
    logits[0, 700:] = -np.inf
    # The tokens that are ruled out get the other extreme.
    extreme = np.full(1000, bits, np.uint32)
    extreme[700:] = 2**32 - 1 - bits
    monkeypatch.setattr(draw, "random_bits", lambda *_: extreme)

    assert sample(logits, [(params(), 0)]) == [int(logits.argmax())]


@given(st.integers(-(2**70), 2**70), st.integers(0, 127), st.integers(0, 2**20), st.integers(4, 100))
def test_random_bits_are_a_function_of_position(seed: int, choice: int, index: int, vocab_size: int) -> None:
    bits = random_bits(Position(seed, choice, index), vocab_size)

    assert bits.shape == (vocab_size,)
    assert (bits == random_bits(Position(seed, choice, index), vocab_size)).all()
    for other in (
        Position(seed, choice, index + 1),
        Position(seed, choice + 1, index),
        Position(seed + 1, choice, index),
    ):
        assert not (bits == random_bits(other, vocab_size)).all()
    fewer = random_bits(Position(seed, choice, index), vocab_size - 1)
    assert (bits[:-1] == fewer).all(), "a token's number depends on no other token"


def test_random_bits_fill_their_range_evenly() -> None:
    numbers = np.concatenate([random_bits(Position(seed, 0, index), 7) for seed in range(50) for index in range(100)])
    counts, _ = np.histogram(numbers, 20, (0, 2**32))
    expected = len(numbers) / 20

    assert ((counts - expected) ** 2 / expected).sum() < 19 + 6 * np.sqrt(2 * 19)


def test_choices_of_a_request_differ() -> None:
    rows = np.zeros((1, 1000), np.float32)
    choosers = [chooser(params(seed=5), choice=choice) for choice in range(50)]
    tokens = choose_tokens(rows, [(0, one) for one in choosers])
    assert len({token.token_id for token in tokens if not isinstance(token, EngineError)}) > 40
