"""Token ids to text, a few at a time. The step between the router's tokens and the client's text.

Invariants: the joined pieces equal the decode of the whole answer; a character whose bytes are spread over tokens comes
out once, whole; bytes that are no UTF-8 (or a tail that was never completed) come out as U+FFFD; special tokens have no
text.
"""

import codecs
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

Decode = Callable[[list[int]], str]

MAX_WINDOW_TOKENS = 32
"""No character takes this many tokens; a window that shows no text for so long never will."""


class IncrementalDetokenizer(Protocol):
    """Turns one answer's tokens to text. Owned by one request."""

    def push(self, token_ids: Iterable[int]) -> str:
        """Return the text that these tokens complete; may be empty."""
        ...

    def finish(self) -> str:
        """Return what an answer that ends here still owes: U+FFFD for an incomplete character, else nothing."""
        ...


class TableDetokenizer:
    """For byte-level vocabularies, where a token is the same bytes everywhere: a look-up and a UTF-8 decoder."""

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        """Use `token_bytes`, indexed by token id (shared, never written); ids beyond it have no text."""
        self._token_bytes = token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_ids: Iterable[int]) -> str:
        """Return the text that these tokens complete; may be empty."""
        table = self._token_bytes
        size = len(table)
        return self._utf8.decode(b"".join([table[token_id] for token_id in token_ids if token_id < size]))

    def finish(self) -> str:
        """Return U+FFFD if the last character is incomplete, else nothing."""
        return self._utf8.decode(b"", final=True)


class WindowDetokenizer:
    """For vocabularies where a token's text depends on its neighbours (SentencePiece's leading space).

    Decodes a short window twice, with and without the new token: what the new one adds is the difference. The window
    starts at the tokens that brought the last text, so their joint is decoded as in the whole answer.
    """

    def __init__(self, decode: Decode, special_token_ids: frozenset[int]) -> None:
        self._decode = decode
        self._special_token_ids = special_token_ids
        self._window: list[int] = []
        self._num_shown = 0

    def push(self, token_ids: Iterable[int]) -> str:
        """Return the text that these tokens complete; may be empty."""
        return "".join([self._push_one(token) for token in token_ids if token not in self._special_token_ids])

    def _push_one(self, token_id: int) -> str:
        self._window.append(token_id)
        new_text = self._unshown_text()
        is_incomplete = not new_text or new_text.endswith("\N{REPLACEMENT CHARACTER}")
        if is_incomplete and len(self._window) - self._num_shown < MAX_WINDOW_TOKENS:
            return ""
        self._window = self._window[self._num_shown :]
        self._num_shown = len(self._window)
        return new_text

    def _unshown_text(self) -> str:
        shown = self._decode(self._window[: self._num_shown])
        return self._decode(self._window)[len(shown) :]

    def finish(self) -> str:
        """Return what the last tokens decode to as they are."""
        text = self._unshown_text()
        self._window, self._num_shown = [], 0
        return text
