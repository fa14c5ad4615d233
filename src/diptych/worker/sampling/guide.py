"""Which tokens a grammar lets through: JSON schema, regular expression or context-free grammar, by llguidance.

Compiling takes milliseconds, or a second for a monster, so it happens on a thread of its own, at the lowest priority,
while the request waits. (What takes longer, or would bring the process down, the frontend has refused: it tries every
grammar out first, diptych.frontend.grammar_check.) To ask about one token (`allows`) takes a microsecond; the mask of
all tokens takes 50, and 200 where the engine has had the cache for itself, so it is computed only where it is needed,
and ahead of time where that is known (`prepare`, while the engine runs). A prefill worker needs no grammar: the mask of
the first token comes with the grant.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from diptych.models.grammar_guide import GrammarGuide, MaskWords, compile_grammar, is_in, make_ll_tokenizer
from diptych.models.vocabulary import Vocabulary
from diptych.worker.sampling.ranking import Floats

MAX_COMPILED_GRAMMARS = 32
LOWEST_PRIORITY = 19


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


class GuideMaker(Protocol):
    """Compiles grammars."""

    def compile(self, grammar: str, cache_salt: str = "") -> "Future[GrammarGuide]":
        """Return a guide at its start, sooner or later, or a GrammarError.

        What was compiled before is found under the same salt only: nobody shall learn by timing what others use.
        """
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
        self._compiled: OrderedDict[tuple[str, str], GrammarGuide] = OrderedDict()
        self._executor = ThreadPoolExecutor(1, "grammars", initializer=_yield_to_others)

    def compile(self, grammar: str, cache_salt: str = "") -> "Future[GrammarGuide]":
        """Return a guide at its start, sooner or later, or a GrammarError."""
        future = self._executor.submit(self._compile, grammar, cache_salt)
        future.add_done_callback(lambda _: self._on_done())
        return future

    def close(self) -> None:
        """Compile nothing any more."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _compile(self, grammar: str, cache_salt: str) -> GrammarGuide:
        """Compile, or copy what was compiled before; on the thread.

        Raises: GrammarError.
        """
        name = (cache_salt, grammar)
        guide = self._compiled.get(name)
        if guide is None:
            guide = compile_grammar(self._ll_tokenizer(), grammar, self._vocab_size)
            self._compiled[name] = guide
            while len(self._compiled) > MAX_COMPILED_GRAMMARS:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(name)
        return guide.for_another_request()

    def _ll_tokenizer(self) -> Any:
        if self._tokenizer is None:
            self._tokenizer = make_ll_tokenizer(self._load_vocabulary(), self._eos_token_ids, self._vocab_size)
        return self._tokenizer


def _yield_to_others() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
