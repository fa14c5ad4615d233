"""The words of made texts are one token each."""

import pytest

from diptych.frontend.text.tokenizer import Tokenizer
from diptych.workload.session import Segment
from diptych.workload.text import WORDS, text_of


def test_words_differ() -> None:
    assert len(set(WORDS)) == len(WORDS) == 256


@pytest.mark.parametrize("num_tokens", [1, 17, 1_000])
def test_a_text_has_as_many_tokens_as_asked(tokenizer: Tokenizer, num_tokens: int) -> None:
    text = text_of([Segment((1,), num_tokens), Segment((2,), num_tokens)])
    assert len(tokenizer.encode(text)) == 2 * num_tokens


def test_editions_share_no_words_and_repeat_themselves() -> None:
    plan = [Segment((1,), 40)]
    texts = [text_of(plan, edition) for edition in ((), (1,), (2, 7))]
    assert texts == [text_of(plan, edition) for edition in ((), (1,), (2, 7))]
    assert len({tuple(text.split()[:3]) for text in texts}) == 3
