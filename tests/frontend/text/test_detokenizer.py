"""Incremental decoding against decoding the whole answer at once."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from diptych.frontend.text.detokenizer import TableDetokenizer, WindowDetokenizer
from diptych.frontend.text.tokenizer import Tokenizer

unicode_texts = st.text(max_size=60)
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def decode_stepwise(detokenizer: TableDetokenizer | WindowDetokenizer, token_ids: list[int]) -> list[str]:
    return [detokenizer.push([token_id]) for token_id in token_ids] + [detokenizer.finish()]


@given(text=unicode_texts)
def test_a_stream_joins_to_the_text_for_any_unicode(tokenizer: Tokenizer, text: str) -> None:
    token_ids = tokenizer.encode(text)
    detokenizer = tokenizer.start_answer()
    pieces = [detokenizer.push([token_id]) for token_id in token_ids] + [detokenizer.finish()]
    assert "".join(pieces) == tokenizer.decode(token_ids)
    # SmolLM2 has no token for some bytes of planes that Unicode has not assigned yet; it reads them as special token 0.
    if tokenizer.special_token_ids.isdisjoint(token_ids):
        assert "".join(pieces) == text


@given(token_ids=st.lists(st.integers(0, 49_151), max_size=40), split=st.integers(1, 7))
def test_any_tokens_decode_to_their_bytes_however_they_arrive(
    tokenizer: Tokenizer, token_ids: list[int], split: int
) -> None:
    detokenizer = tokenizer.start_answer()
    pieces = [detokenizer.push(token_ids[start : start + split]) for start in range(0, len(token_ids), split)]
    assert "".join(pieces) + detokenizer.finish() == tokenizer.decode(token_ids)


@given(text=unicode_texts)
def test_the_window_decoder_agrees_with_the_table(tokenizer: Tokenizer, text: str) -> None:
    token_ids = tokenizer.encode(text)
    window = WindowDetokenizer(tokenizer.decode, tokenizer.special_token_ids)
    assert "".join(decode_stepwise(window, token_ids)) == tokenizer.decode(token_ids)


def test_a_character_in_two_tokens_comes_out_once_and_whole() -> None:
    table = TableDetokenizer([b"\xf0\x9f", b"\x98\x80", b"!"])
    assert decode_stepwise(table, [0, 1, 2]) == ["", "😀", "!", ""]


def test_an_incomplete_tail_becomes_one_replacement_character() -> None:
    assert decode_stepwise(TableDetokenizer([b"a\xf0\x9f"]), [0]) == ["a", REPLACEMENT]


def test_tokens_beyond_the_vocabulary_have_no_text() -> None:
    assert TableDetokenizer([b"a"]).push([0, 7]) == "a"


def sentencepiece_decode(token_ids: list[int]) -> str:
    """As SentencePiece does it: one leading space of the whole text is dropped, a broken character becomes U+FFFD."""
    pieces = [b"\xe2\x96\x81one", b"\xe2\x96\x81two", b"x", b"\xf0\x9f", b"\x98\x80", b""]
    joined = b"".join(pieces[token_id] for token_id in token_ids).decode("utf-8", "replace")
    return joined.replace("▁", " ").removeprefix(" ")


@given(token_ids=st.lists(st.sampled_from([0, 1, 2, 3, 4]), max_size=30))
def test_the_window_decoder_keeps_the_spaces_of_sentencepiece(token_ids: list[int]) -> None:
    # Broken characters next to each other may be shown one by one or merged: only whole text is promised.
    whole = [3, 4]
    tokens = [piece for token_id in token_ids for piece in (whole if token_id in whole else [token_id])]
    window = WindowDetokenizer(sentencepiece_decode, frozenset())
    assert "".join(decode_stepwise(window, tokens)) == sentencepiece_decode(tokens)


def test_the_window_decoder_leaves_out_special_tokens_and_stays_small() -> None:
    window = WindowDetokenizer(sentencepiece_decode, frozenset({5}))
    assert window.push([5] * 1000 + [0]) == "one"
    assert window.push([5] * 1000 + [1]) == " two"


@pytest.mark.parametrize("num_broken", [1, 31, 32, 33, 100])
def test_the_window_decoder_goes_on_after_bytes_that_are_no_text(num_broken: int) -> None:
    window = WindowDetokenizer(sentencepiece_decode, frozenset())
    pieces = decode_stepwise(window, [3] * num_broken + [2])
    assert "".join(pieces) == REPLACEMENT * num_broken + "x"
