"""Follows a grammar through an answer, within bounds: llguidance with a model's tokens.

For those who try a grammar out before it is let in (frontend) and those who write by it (workers). Invariants: no
single operation takes long (`_LIMITS`), and all operations for one answer together stay within an `Allowance`: a
grammar that is slow at every token would slow down everybody in the same batch. Both end only the request that brought
the grammar.
"""

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from diptych.core.errors import GrammarError
from diptych.models.vocabulary import Vocabulary

MaskWords = npt.NDArray[np.uint32]
"""[vocab_size / 32, rounded up]: a bit a token, the lowest first; 1: the token may come."""

WORD_BITS = 32
ALLOWANCE_S = 0.1
"""Of computing time to begin with. JSON schemas of a few kilobytes need a hundredth of it."""
ALLOWANCE_PER_TOKEN_S = 0.004
"""A mask takes 0.05 to 0.3 ms."""
_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 20_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
"""A fifth to a half of llguidance's own, whose worst mask takes 0.4 s and 190 MB; with these it is 0.17 s and 90 MB."""


def is_in(mask: MaskWords, token_id: int) -> bool:
    """Tell whether a token's bit is 1."""
    return bool(mask[token_id // WORD_BITS] >> np.uint32(token_id % WORD_BITS) & np.uint32(1))


class Allowance:
    """The computing time that all choices of one request may take for their grammar. A context manager takes time."""

    def __init__(self) -> None:
        self._left_s = ALLOWANCE_S
        self._begun_s = 0.0

    @property
    def is_spent(self) -> bool:
        """Whether there is none left."""
        return self._left_s < 0

    def on_token(self) -> None:
        """Add what a token may take."""
        self._left_s = min(self._left_s + ALLOWANCE_PER_TOKEN_S, ALLOWANCE_S)

    def __enter__(self) -> None:
        """Begin to count: this thread's own time, since others may have the core meanwhile."""
        self._begun_s = time.thread_time()

    def __exit__(self, *_: object) -> None:
        """Count."""
        self._left_s -= time.thread_time() - self._begun_s


class GrammarGuide:
    """Follows a grammar through one answer."""

    def __init__(self, matcher: Any, vocab_size: int, allowance: Allowance | None = None) -> None:
        """Own `matcher`, a `llguidance.LLMatcher` that is at its start."""
        self._matcher = matcher
        self._allowance = allowance or Allowance()
        self._mask: MaskWords = np.zeros(-(-vocab_size // WORD_BITS), np.uint32)
        self._is_current = False

    def prepare(self) -> None:
        """Compute the mask; lets go of the GIL."""
        if not self._is_current and not self._allowance.is_spent:
            with self._allowance:
                self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
            self._is_current = True

    def mask(self) -> MaskWords:
        """Return which tokens may come now. The array changes with the next token.

        Raises: GrammarError if following the grammar takes too much memory or time.
        """
        self.prepare()
        self._raise_if_lost()
        return self._mask

    def allows(self, token_id: int) -> bool:
        """Tell whether this token may come now; no once the grammar is lost, which `mask` then says."""
        if self._is_current:
            return is_in(self._mask, token_id)
        if self._allowance.is_spent:
            return False
        with self._allowance:
            return bool(self._matcher.validate_tokens([token_id]) == 1)

    def on_token(self, token_id: int) -> None:
        """Take note of the answer's next token, one that the mask allowed."""
        self._allowance.on_token()
        with self._allowance:
            self._matcher.consume_token(token_id)
        self._is_current = False

    @property
    def is_over(self) -> bool:
        """Whether the grammar is at its end."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def copy(self) -> "GrammarGuide":
        """Return a guide at the same place, for another choice of the same request."""
        return self._copied(self._allowance)

    def for_another_request(self) -> "GrammarGuide":
        """Return a guide at the same place with an allowance of its own."""
        return self._copied(Allowance())

    def _copied(self, allowance: Allowance) -> "GrammarGuide":
        copy = GrammarGuide(self._matcher.deep_copy(), len(self._mask) * WORD_BITS, allowance)
        copy._mask[:] = self._mask
        copy._is_current = self._is_current
        return copy

    def _raise_if_lost(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(f"the grammar cannot be followed: {_first_line(self._matcher.get_error())}")
        if self._allowance.is_spent:
            raise GrammarError("the grammar cannot be followed: it takes too long to tell which tokens may come")


def compile_grammar(ll_tokenizer: Any, grammar: str, vocab_size: int) -> GrammarGuide:
    """Return a guide at the grammar's start.

    Raises: GrammarError with what is wrong with the grammar.
    """
    import llguidance  # noqa: PLC0415  loaded by the first request that needs it

    limits = llguidance.LLParserLimits(**_LIMITS)
    matcher = llguidance.LLMatcher(ll_tokenizer, grammar, log_level=0, limits=limits)
    if matcher.is_error():
        raise GrammarError(f"the grammar cannot be used: {_first_line(matcher.get_error())}")
    guide = GrammarGuide(matcher, vocab_size)
    if not guide.mask().any():
        raise GrammarError("the grammar lets no token through")
    return guide


def make_ll_tokenizer(vocabulary: Vocabulary, eos_token_ids: list[int], vocab_size: int) -> Any:
    """Return a `llguidance.LLTokenizer` for logits [vocab_size]."""
    import llguidance  # noqa: PLC0415

    wrapper = llguidance.TokenizerWrapper(_Tokens(vocabulary, eos_token_ids, vocab_size))
    return llguidance.LLTokenizer(wrapper, n_vocab=vocab_size, eos_token=eos_token_ids)


class _Tokens:
    """A vocabulary as llguidance asks for it."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, eos_token_ids: list[int], vocab_size: int) -> None:
        """Fill up to `vocab_size` with tokens of no text, which no grammar lets through: some models have such."""
        self.tokens = [*vocabulary.token_bytes, *[b""] * (vocab_size - vocabulary.size)]
        self.special_token_ids = sorted(vocabulary.special_token_ids)
        self.eos_token_id = eos_token_ids[0] if eos_token_ids else None
        self._encode = vocabulary.encode

    def __call__(self, text: str) -> list[int]:
        """Tokenize what a grammar leaves no choice in: the model shall see it as it would have written it."""
        if not isinstance(text, str):  # llguidance tries bytes first
            raise TypeError("only text is tokenized")
        return self._encode(text)


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
