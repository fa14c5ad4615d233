"""How long an answer is expected to be: by those that have ended, and until then by those that have not."""

import random

import pytest

from diptych.core.events import Lifecycle, RequestRecord
from diptych.core.ids import RequestId
from diptych.router.history import FIRST_MEAN_OUTPUT_TOKENS, History


class Answers:
    """A history, and the answers that it hears of."""

    def __init__(self) -> None:
        self.history = History()

    @property
    def expected_tokens(self) -> float:
        return self.history.expected_output_tokens

    def write(self, num_tokens: int, *, num_answers: int = 1) -> None:
        """Let answers begin, and go on for so many tokens each."""
        for _ in range(num_answers):
            self.history.on_tokens(num_tokens, is_first=True)

    def go_on(self, num_tokens: int) -> None:
        """Let open answers get so many tokens more in all."""
        self.history.on_tokens(num_tokens, is_first=False)

    def end(self, num_output_tokens: int) -> None:
        """Let an answer of so many tokens end."""
        record = RequestRecord(
            request_id=RequestId("r"),
            outcome="stop",
            decode_worker="decode-0",
            prefill_worker=None,
            num_prompt_tokens=10,
            num_cached_tokens=0,
            num_output_tokens=num_output_tokens,
            num_preemptions=0,
            timeline={Lifecycle.ARRIVED: 1.0, Lifecycle.FINISHED: 2.0},
        )
        self.history.add(record)


def test_the_first_answer_is_guessed() -> None:
    answers = Answers()
    assert answers.expected_tokens == FIRST_MEAN_OUTPUT_TOKENS
    answers.write(1, num_answers=3)
    assert answers.expected_tokens == pytest.approx(FIRST_MEAN_OUTPUT_TOKENS, rel=0.01)


def test_answers_that_do_not_end_are_expected_to_go_on() -> None:
    answers = Answers()
    answers.write(10, num_answers=100)
    before = answers.expected_tokens
    answers.go_on(100 * 90)
    assert answers.expected_tokens > max(before, 1_000), "of 10,000 tokens none was the last"


def test_the_first_to_end_do_not_stand_for_all() -> None:
    """A thousand answers begin at once, of 500 tokens in the mean; the short ones end first."""
    draw = random.Random(1)
    lengths = sorted(max(round(draw.expovariate(1 / 500)), 1) for _ in range(1_000))
    answers = Answers()
    answers.write(1, num_answers=len(lengths))
    age = 1
    for num_ended, length in enumerate(lengths[:400]):
        answers.go_on((length - age) * (len(lengths) - num_ended))
        age = length
        answers.end(length)
        if num_ended >= 50:
            assert answers.expected_tokens == pytest.approx(500, rel=0.35)
    assert sum(lengths[:400]) / 400 < 150, "a mean of the ended ones would have said so"


def test_later_those_that_ended_last_tell() -> None:
    answers = Answers()
    for length in [1_000] * 100 + [20] * 100:
        answers.write(length)
        answers.end(length)
    answers.write(10, num_answers=50)
    assert answers.expected_tokens == pytest.approx(20, rel=0.01)


def test_requests_that_brought_nothing_tell_nothing() -> None:
    answers = Answers()
    for _ in range(100):
        answers.end(0)
    assert answers.expected_tokens == FIRST_MEAN_OUTPUT_TOKENS
