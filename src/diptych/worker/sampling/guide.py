"""Which tokens a grammar lets through: JSON schema, regular expression or context-free grammar, by llguidance.

Compiling takes milliseconds, or a second for a monster, so it happens on a thread of its own, at the lowest priority,
while the request waits. To ask about one token (`allows`) takes a microsecond; the mask of all tokens takes 50, and 200
where the engine has had the cache for itself, so it is computed only where it is needed, and ahead of time where that
is known (`prepare`, while the engine runs). A prefill worker needs no grammar: the mask of the first token comes with
the grant.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from diptych.core.errors import GrammarError
from diptych.models.vocabulary import Vocabulary
from diptych.worker.sampling.ranking import Floats

MaskWords = npt.NDArray[np.uint32]
"""[vocab_size / 32, rounded up]: a bit a token, the lowest first; 1: the token may come."""

MAX_COMPILED_GRAMMARS = 32
LOWEST_PRIORITY = 19
WORD_BITS = 32


class Guide(Protocol):
    """Says which tokens may come next in one answer."""

    def prepare(self) -> None:
        """Do ahead of time what `mask` would have to do."""
        ...

    def mask(self) -> MaskWords:
        """Return which tokens may come now.

        Raises: GrammarError if that cannot be said any more.
        """
        ...

    def allows(self, token_id: int) -> bool:
        """Tell whether this token may come now, without a mask if there is none yet."""
        ...

    def on_token(self, token_id: int) -> None:
        """Take note of the answer's next token."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether the answer is complete and nothing may follow."""
        ...

    def copy(self) -> "Guide":
        """Return a guide at the same place, for another choice."""
        ...


def rule_out(logits: Floats, mask: MaskWords) -> None:
    """Make tokens impossible whose bits are 0, in place."""
    bits = np.unpackbits(mask.view(np.uint8), count=len(logits), bitorder="little")
    np.copyto(logits, np.float32(-np.inf), where=bits == 0)


def is_in(mask: MaskWords, token_id: int) -> bool:
    """Tell whether a token's bit is 1."""
    return bool(mask[token_id // WORD_BITS] >> np.uint32(token_id % WORD_BITS) & np.uint32(1))


class FirstTokenGuide:
    """The guide of a prefill worker: a mask that came with the grant, for the one token that it samples."""

    def __init__(self, mask: bytes) -> None:
        self._mask = np.frombuffer(mask, np.uint32)

    @property
    def is_over(self) -> bool:
        """Say no: the decode worker finds out."""
        return False

    def prepare(self) -> None:
        """Do nothing: the mask is here."""

    def mask(self) -> MaskWords:
        """Return the mask."""
        return self._mask

    def allows(self, token_id: int) -> bool:
        """Look it up."""
        return is_in(self._mask, token_id)

    def on_token(self, token_id: int) -> None:
        """Forget the token: the decode worker follows the grammar."""

    def copy(self) -> "FirstTokenGuide":
        """Return itself: nothing of it changes."""
        return self


class GrammarGuide:
    """Follows a grammar through one answer."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        """Own `matcher`, a `llguidance.LLMatcher` that is at its start."""
        self._matcher = matcher
        self._mask: MaskWords = np.zeros(-(-vocab_size // WORD_BITS), np.uint32)
        self._is_current = False

    def prepare(self) -> None:
        """Compute the mask; lets go of the GIL."""
        if not self._is_current:
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
        """Tell whether this token may come now."""
        if self._is_current:
            return is_in(self._mask, token_id)
        return bool(self._matcher.validate_tokens([token_id]) == 1)

    def on_token(self, token_id: int) -> None:
        """Take note of the answer's next token, one that the mask allowed."""
        self._matcher.consume_token(token_id)
        self._is_current = False

    @property
    def is_over(self) -> bool:
        """Whether the grammar is at its end."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def copy(self) -> "GrammarGuide":
        """Return a guide at the same place, for another choice."""
        return GrammarGuide(self._matcher.deep_copy(), len(self._mask) * WORD_BITS)

    def _raise_if_lost(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(f"the grammar cannot be followed: {self._matcher.get_error()}")


class GuideMaker(Protocol):
    """Compiles grammars."""

    def compile(self, grammar: str) -> "Future[GrammarGuide]":
        """Return a guide at its start, sooner or later, or a GrammarError."""
        ...


class GrammarCompiler:
    """Compiles grammars one after the other, at the lowest priority. What it needs is loaded for the first one."""

    def __init__(
        self,
        load_vocabulary: Callable[[], Vocabulary],
        eos_token_ids: Iterable[int],
        vocab_size: int,
        on_done: Callable[[], None],
    ) -> None:
        """`on_done` is called, on the compiler's thread, whenever a guide (or an error) is there."""
        self._load_vocabulary = load_vocabulary
        self._eos_token_ids = sorted(eos_token_ids)
        self._vocab_size = vocab_size
        self._on_done = on_done
        self._tokenizer: Any = None
        self._compiled: OrderedDict[str, GrammarGuide] = OrderedDict()
        self._executor = ThreadPoolExecutor(1, "grammars", initializer=_yield_to_others)

    def compile(self, grammar: str) -> "Future[GrammarGuide]":
        """Return a guide at its start, sooner or later, or a GrammarError."""
        future = self._executor.submit(self._compile, grammar)
        future.add_done_callback(lambda _: self._on_done())
        return future

    def close(self) -> None:
        """Compile nothing any more."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _compile(self, grammar: str) -> GrammarGuide:
        """Compile, or copy what was compiled before; on the thread.

        Raises: GrammarError.
        """
        guide = self._compiled.get(grammar)
        if guide is None:
            guide = compile_grammar(self._ll_tokenizer(), grammar, self._vocab_size)
            self._compiled[grammar] = guide
            while len(self._compiled) > MAX_COMPILED_GRAMMARS:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return guide.copy()

    def _ll_tokenizer(self) -> Any:
        if self._tokenizer is None:
            self._tokenizer = make_ll_tokenizer(self._load_vocabulary(), self._eos_token_ids, self._vocab_size)
        return self._tokenizer


def compile_grammar(ll_tokenizer: Any, grammar: str, vocab_size: int) -> GrammarGuide:
    """Return a guide at the grammar's start.

    Raises: GrammarError with what is wrong with the grammar.
    """
    import llguidance  # noqa: PLC0415  loaded by the first request that needs it

    matcher = llguidance.LLMatcher(ll_tokenizer, grammar, log_level=0)
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


def _yield_to_others() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
