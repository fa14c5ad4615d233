"""The tokenizer of a real model: templates, special tokens, lengths."""

from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from diptych.core.errors import InvalidRequestError, ModelError
from diptych.frontend.text.tokenizer import Tokenizer


def test_special_tokens_are_read_in_prompts_and_never_shown(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("one<|im_end|>two")
    assert tokenizer.special_token_ids & set(token_ids)
    assert tokenizer.decode(token_ids) == "onetwo"
    assert tokenizer.decode(token_ids, skip_special_tokens=False) == "one<|im_end|>two"
    (special,) = tokenizer.special_token_ids & set(token_ids)
    assert tokenizer.token_bytes(special) == b"<|im_end|>"
    assert tokenizer.token_bytes(10**6) == b""


def test_a_prompt_is_refused_rather_than_cut(tokenizer: Tokenizer) -> None:
    assert tokenizer.max_text_tokens is not None
    with pytest.raises(InvalidRequestError) as caught:
        tokenizer.encode("a b " * tokenizer.max_text_tokens)
    assert caught.value.code == "context_length_exceeded"


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no OpenVINO tokenizer"):
        Tokenizer(tmp_path)


def test_the_vocabulary_covers_every_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 49_152
    assert tokenizer.is_byte_level


@given(text=st.text(max_size=200) | st.text(" ", max_size=400))
def test_no_text_has_fewer_tokens_than_promised(tokenizer: Tokenizer, text: str) -> None:
    assert len(tokenizer.encode(text)) >= tokenizer.fewest_tokens(len(text.encode()))


def test_long_texts_are_known_to_be_long(tokenizer: Tokenizer) -> None:
    assert tokenizer.fewest_tokens(1_000_000) > 5_000
