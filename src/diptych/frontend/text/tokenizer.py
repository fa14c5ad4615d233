"""The model's tokenizer. The step after a request's JSON has been checked, and the way back of its answer.

Invariants: a prompt is never cut in silence (OpenVINO's tokenizer does so at a length fixed in its file, whatever it is
told); unless asked for, a special token's text is never part of an answer.
"""

import logging
from pathlib import Path
from typing import Any

from diptych.core.errors import InvalidRequestError
from diptych.frontend.text.detokenizer import IncrementalDetokenizer, TableDetokenizer, WindowDetokenizer
from diptych.models.vocabulary import load_tokenizer, vocabulary_of

log = logging.getLogger(__name__)

_PROBES = (
    "Hello, world!  Two  spaces, don 't , touch .",
    "  leading and trailing \n\n\t",
    "日本語 😀 русский עברית",
    "decomposed e\u0301, \u1100\u1161\u11a8, \u212b, \ufb01, CRLF\r\n, NUL\0",
)
_LENGTH_PROBE = "a b c d " * 40_000
"""More tokens than the context of the models that we serve, in a few tens of milliseconds."""

NORMALIZED_SHARE = 4


class Tokenizer:
    """A model's tokenizer. Safe to share between threads.

    OpenVINO GenAI 2026.4 holds Python's lock while it works, so a thread would not keep a long text from stalling the
    event loop (20 ms a megabyte of prose, 300 of blanks). `fewest_tokens` lets the caller refuse what cannot fit before
    the time is spent.
    """

    def __init__(self, model_dir: Path) -> None:
        """Load the tokenizer of the OpenVINO model in `model_dir`.

        Raises: ModelError if there is none.
        """
        self.openvino: Any = load_tokenizer(model_dir)
        """The `openvino_genai.Tokenizer`, for what only it can do (chat templates)."""
        vocabulary = vocabulary_of(self.openvino)
        self.vocabulary = vocabulary
        self.vocab_size = vocabulary.size
        self.special_token_ids = vocabulary.special_token_ids
        self._token_bytes = vocabulary.token_bytes
        self._plain_bytes = [
            b"" if token_id in self.special_token_ids else token for token_id, token in enumerate(self._token_bytes)
        ]
        self._longest_token_bytes = max(len(token) for token in self._token_bytes)
        self.is_byte_level = vocabulary.is_byte_level and self._check_probes()
        self._is_lossless = self.is_byte_level and all(
            self.decode(self._encode(probe, add_special_tokens=False)) == probe for probe in _PROBES
        )
        self.max_text_tokens = self._find_cut()
        log.debug("tokenizer of %d tokens, byte level: %s", self.vocab_size, self.is_byte_level)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the tokens of a text, with whatever the tokenizer puts around text (such as BOS) unless told not to.

        Raises: InvalidRequestError if the tokenizer would cut the text.
        """
        cut = self.max_text_tokens
        is_too_long = cut is not None and self.fewest_tokens(len(text.encode())) >= cut
        token_ids = [] if is_too_long else self._encode(text, add_special_tokens=add_special_tokens)
        if is_too_long or (cut is not None and len(token_ids) >= cut):
            raise InvalidRequestError(
                f"the prompt has {self.max_text_tokens} tokens or more, which is all that this model's tokenizer "
                "reads; shorten it",
                code="context_length_exceeded",
            )
        return token_ids

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of a whole answer."""
        detokenizer = self.start_answer(skip_special_tokens=skip_special_tokens)
        return detokenizer.push(token_ids) + detokenizer.finish()

    def start_answer(self, *, skip_special_tokens: bool = True) -> IncrementalDetokenizer:
        """Return a detokenizer for one answer."""
        if self.is_byte_level:
            return TableDetokenizer(self._plain_bytes if skip_special_tokens else self._token_bytes)
        return WindowDetokenizer(
            lambda token_ids: self.openvino.decode(token_ids, skip_special_tokens=skip_special_tokens),
            self.special_token_ids if skip_special_tokens else frozenset(),
        )

    def token_bytes(self, token_id: int) -> bytes:
        """Return a token as bytes, a special one as its name; nothing for ids without a token."""
        return self._token_bytes[token_id] if token_id < len(self._token_bytes) else b""

    def fewest_tokens(self, num_text_bytes: int) -> int:
        """Return how many tokens a text of so many UTF-8 bytes has at least.

        Where the tokenizer normalizes text first this is a guess: that it leaves a quarter of the bytes.
        """
        return num_text_bytes // (self._longest_token_bytes * (1 if self._is_lossless else NORMALIZED_SHARE))

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        encoded: Any = self.openvino.encode(text, add_special_tokens=add_special_tokens)
        token_ids: list[int] = encoded.input_ids.data[0].tolist()
        return token_ids

    def _check_probes(self) -> bool:
        """Return whether joined table entries are what the tokenizer itself decodes."""
        for probe in _PROBES:
            token_ids = self._encode(probe, add_special_tokens=False)
            text = b"".join(self._plain_bytes[token_id] for token_id in token_ids).decode("utf-8", "ignore")
            if text != self.openvino.decode(token_ids):
                return False
        return True

    def _find_cut(self) -> int | None:
        """Return the number of tokens at which the tokenizer cuts a text in silence; None if it does not."""
        num_tokens = len(self._encode(_LENGTH_PROBE, add_special_tokens=False))
        num_tokens_of_double = len(self._encode(_LENGTH_PROBE * 2, add_special_tokens=False))
        return num_tokens if num_tokens_of_double == num_tokens else None
