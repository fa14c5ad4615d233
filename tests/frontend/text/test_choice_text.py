"""An answer's text and its tokens: whatever arrives together, the same is shown, and nothing that was cut is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.core.request import TokenLogprobs
from diptych.frontend.text.choice_text import ChoiceText, TextOptions, TextPiece
from diptych.frontend.text.tokenizer import Tokenizer

SAID = "Der Käse 日本 👩‍🚀 costs 5 €. STOP here or not."


def logprobs(token_ids: list[int]) -> list[TokenLogprobs]:
    """Make each token's log-probability tell which token it is."""
    return [TokenLogprobs(-float(token_id), 1, []) for token_id in token_ids]


def run(tokenizer: Tokenizer, parts: list[list[int]], options: TextOptions) -> tuple[ChoiceText, TextPiece]:
    """Return the text after these parts, and all pieces as one."""
    text = ChoiceText(tokenizer.start_answer(skip_special_tokens=options.skip_special_tokens), options)
    whole = TextPiece("")
    for part in parts:
        if text.is_stopped:
            break
        piece = text.push(part, logprobs(part))
        whole = TextPiece(whole.text + piece.text, whole.num_tokens + piece.num_tokens, whole.tokens + piece.tokens)
    piece = text.finish()
    return text, TextPiece(whole.text + piece.text, whole.num_tokens, whole.tokens + piece.tokens)


def cut(token_ids: list[int], cuts: list[int]) -> list[list[int]]:
    ends = sorted({min(end, len(token_ids)) for end in cuts} | {len(token_ids)})
    parts = [token_ids[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
    return [part for part in parts if part]


@given(st.lists(st.integers(1, 40)), st.sampled_from([(), ("STOP",), ("€. S", "never"), ("本 \U0001f469",)]))
def test_neither_text_nor_tokens_depend_on_what_arrives_together(
    tokenizer: Tokenizer, cuts: list[int], stop_strings: tuple[str, ...]
) -> None:
    token_ids = tokenizer.encode(SAID)
    options = TextOptions(stop_strings=stop_strings, wants_tokens=True)

    text, whole = run(tokenizer, cut(token_ids, cuts), options)

    expected = SAID.partition(stop_strings[0])[0] if stop_strings else SAID
    assert whole.text == expected
    assert text.stop_reason == (stop_strings[0] if stop_strings else None)
    told = [token.token_id for token in whole.tokens]
    assert told == token_ids[: len(told)]
    assert [token.logprobs for token in whole.tokens] == logprobs(told)
    assert all(token.offset <= len(expected) for token in whole.tokens)
    if not stop_strings:
        assert told == token_ids
    else:  # all that is shown comes from what is told, and no token that was cut off as a whole is
        assert tokenizer.decode(told).startswith(expected)
        assert not tokenizer.decode(told[:-1]).startswith(expected) or not stop_strings


def test_offsets_are_where_texts_begin(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode(SAID)
    _, whole = run(tokenizer, [token_ids], TextOptions(wants_tokens=True))
    for index, token in enumerate(whole.tokens):
        assert token.offset == len(tokenizer.decode(token_ids[:index]).rstrip("\ufffd"))


def test_tokens_are_not_told_before_their_text(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("one STO not")
    text = ChoiceText(tokenizer.start_answer(), TextOptions(stop_strings=("STOP",), wants_tokens=True))
    told: list[int] = []
    shown = ""
    for token_id in token_ids:
        piece = text.push([token_id], None)
        shown += piece.text
        told += [token.token_id for token in piece.tokens]
        assert tokenizer.decode(told) == shown[: len(tokenizer.decode(told))]


@pytest.mark.parametrize("is_shown", [False, True])
def test_what_ends_an_answer_is_a_part_of_it_only_if_asked(tokenizer: Tokenizer, is_shown: bool) -> None:
    token_ids = tokenizer.encode("yes. no")
    ending = token_ids[1]
    options = TextOptions(
        ending_token_ids=frozenset({ending}), stop_token_ids=frozenset({ending}), is_ending_shown=is_shown
    )
    text, whole = run(tokenizer, [token_ids[:2]], options)
    assert whole.text == ("yes." if is_shown else "yes")
    assert text.stop_reason == ending
    assert text.num_tokens == 2

    options = TextOptions(stop_strings=(". n",), is_ending_shown=is_shown)
    assert run(tokenizer, [token_ids], options)[1].text == ("yes. n" if is_shown else "yes")


def test_the_models_own_end_is_no_reason(tokenizer: Tokenizer) -> None:
    (eos,) = tokenizer.encode("<|im_end|>")
    text, whole = run(tokenizer, [[*tokenizer.encode("yes"), eos]], TextOptions(ending_token_ids=frozenset({eos})))
    assert (whole.text, text.stop_reason) == ("yes", None)


def test_special_tokens_are_shown_if_asked(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("a<|im_start|>b")
    assert run(tokenizer, [token_ids], TextOptions())[1].text == "ab"
    assert run(tokenizer, [token_ids], TextOptions(skip_special_tokens=False))[1].text == "a<|im_start|>b"
