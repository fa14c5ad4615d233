"""Text to token ids: the chat template and the model's tokenizer. The step after a request's JSON has been checked.

Invariants: a prompt is never cut in silence (OpenVINO's tokenizer does so at a length fixed in its file, whatever it is
told); a special token's text is never part of an answer.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import openvino_genai

from diptych.core.errors import InvalidRequestError, ModelError
from diptych.frontend.detokenizer import IncrementalDetokenizer, TableDetokenizer, WindowDetokenizer

log = logging.getLogger(__name__)

_PROBES = (
    "Hello, world!  Two  spaces, don 't , touch .",
    "  leading and trailing \n\n\t",
    "日本語 😀 русский עברית",
    "decomposed e\u0301, \u1100\u1161\u11a8, \u212b, \ufb01, CRLF\r\n, NUL\0",
)
_LENGTH_PROBE = "a b c d " * 40_000
"""More tokens than the context of the models that we serve, in a few tens of milliseconds."""


class Tokenizer:
    """A model's tokenizer and chat template. Safe to share between threads.

    OpenVINO GenAI 2026.4 holds Python's lock while it works, so a thread would not keep a long text from stalling the
    event loop (40 ms a megabyte). `fewest_tokens` lets the caller refuse what cannot fit before the time is spent.
    """

    def __init__(self, model_dir: Path) -> None:
        """Load the tokenizer of the OpenVINO model in `model_dir`.

        Raises: ModelError if there is none.
        """
        try:
            self._tokenizer = openvino_genai.Tokenizer(str(model_dir))
            vocabulary: dict[bytes, int] = self._tokenizer.get_vocab()
        except RuntimeError as error:
            raise ModelError(f"{model_dir} holds no OpenVINO tokenizer: {_first_line(str(error))}") from error
        self.vocab_size = max(vocabulary.values()) + 1
        self.special_token_ids = self._find_special_tokens()
        self._token_bytes = self._text_table(vocabulary)
        self._longest_token_bytes = max(len(token) for token in vocabulary)
        self.is_byte_level = self._check_table()
        self._is_lossless = self.is_byte_level and all(
            self.decode(self._encode(probe, add_special_tokens=False)) == probe for probe in _PROBES
        )
        self.max_text_tokens = self._find_cut()
        log.info("tokenizer of %d tokens, byte level: %s", self.vocab_size, self.is_byte_level)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of plain text, with whatever the tokenizer puts around text by default (such as BOS).

        Raises: InvalidRequestError if the tokenizer would cut the text.
        """
        return self._encode_whole(text, add_special_tokens=True)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the tokens of a conversation, up to where the assistant's next words go.

        Messages have `role` and `content`.

        Raises: InvalidRequestError if the model's template refuses them or the tokenizer would cut the text.
        """
        return self._encode_whole(self._apply_chat_template(messages), add_special_tokens=False)

    def decode(self, token_ids: list[int]) -> str:
        """Return the text of a whole answer."""
        detokenizer = self.start_answer()
        return detokenizer.push(token_ids) + detokenizer.finish()

    def start_answer(self) -> IncrementalDetokenizer:
        """Return a detokenizer for one answer."""
        if self.is_byte_level:
            return TableDetokenizer(self._token_bytes)
        return WindowDetokenizer(self._tokenizer.decode, self.special_token_ids)

    def fewest_tokens(self, num_text_bytes: int) -> int:
        """Return how many tokens a text of so many UTF-8 bytes has at least; 0 where only trying tells."""
        return num_text_bytes // self._longest_token_bytes if self._is_lossless else 0

    def _apply_chat_template(self, messages: Sequence[Mapping[str, str]]) -> str:
        history = [dict(message) for message in messages]
        try:
            text: str = self._tokenizer.apply_chat_template(history, add_generation_prompt=True)
        except RuntimeError as error:
            reason = _first_line(str(error).rpartition("Minja's error: ")[2])
            raise InvalidRequestError(
                f"the model's chat template refuses these messages: {reason}", param="messages"
            ) from error
        return text

    def _encode_whole(self, text: str, *, add_special_tokens: bool) -> list[int]:
        token_ids = self._encode(text, add_special_tokens=add_special_tokens)
        if self.max_text_tokens is not None and len(token_ids) >= self.max_text_tokens:
            raise InvalidRequestError(
                f"the prompt has {self.max_text_tokens} tokens or more, which is all that this model's tokenizer "
                "reads; shorten it",
                code="context_length_exceeded",
            )
        return token_ids

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        encoded: Any = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        token_ids: list[int] = encoded.input_ids.data[0].tolist()
        return token_ids

    def _find_special_tokens(self) -> frozenset[int]:
        """Return the tokens whose text shows only when special tokens are asked for."""
        each_token = [[token_id] for token_id in range(self.vocab_size)]
        shown: list[str] = self._tokenizer.decode(each_token, skip_special_tokens=False)
        plain: list[str] = self._tokenizer.decode(each_token)
        return frozenset(token_id for token_id in range(self.vocab_size) if shown[token_id] and not plain[token_id])

    def _text_table(self, vocabulary: Mapping[bytes, int]) -> list[bytes]:
        table = [b""] * self.vocab_size
        for token, token_id in vocabulary.items():
            if token_id not in self.special_token_ids:
                table[token_id] = token
        return table

    def _check_table(self) -> bool:
        """Return whether joined table entries are what the tokenizer itself decodes, for every token and the probes."""
        singles: list[str] = self._tokenizer.decode([[token_id] for token_id in range(self.vocab_size)])
        for token, single in zip(self._token_bytes, singles, strict=True):
            # OpenVINO drops bytes that are no UTF-8, where other stacks (and we) show U+FFFD.
            if token.decode("utf-8", "ignore") != single:
                return False
        for probe in _PROBES:
            token_ids = self._encode(probe, add_special_tokens=False)
            text = b"".join(self._token_bytes[token_id] for token_id in token_ids).decode("utf-8", "ignore")
            if text != self._tokenizer.decode(token_ids):
                return False
        return True

    def _find_cut(self) -> int | None:
        """Return the number of tokens at which the tokenizer cuts a text in silence; None if it does not."""
        num_tokens = len(self._encode(_LENGTH_PROBE, add_special_tokens=False))
        num_tokens_of_double = len(self._encode(_LENGTH_PROBE * 2, add_special_tokens=False))
        return num_tokens if num_tokens_of_double == num_tokens else None


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
