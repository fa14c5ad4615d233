"""The text of one choice as it grows: detokenized, cut at a stop string, with the tokens that it came from.

Invariants: no character of a stop string is ever shown (unless asked for); a token is told together with its text, so
none is told whose text is held back and then cut off; where the cut falls does not depend on how tokens arrived.
"""

from collections import deque
from dataclasses import dataclass, field

from diptych.core.request import TokenLogprobs
from diptych.frontend.text.detokenizer import IncrementalDetokenizer
from diptych.frontend.text.stop_strings import StopStringMatcher


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """How a request's answers become text."""

    stop_strings: tuple[str, ...] = ()
    ending_token_ids: frozenset[int] = frozenset()
    """Tokens that end an answer: they have no text."""
    stop_token_ids: frozenset[int] = frozenset()
    """Those of them that the client named."""
    is_ending_shown: bool = False
    """Whether the stop string, or the ending token's text, is a part of the answer all the same."""
    skip_special_tokens: bool = True
    wants_tokens: bool = False
    """Whether each piece brings its tokens (for log-probabilities and token ids)."""


@dataclass(frozen=True, slots=True)
class ShownToken:
    """A token whose text, if any, has been shown."""

    token_id: int
    logprobs: TokenLogprobs | None
    offset: int
    """Where its text begins in the answer, in characters."""


@dataclass(slots=True)
class TextPiece:
    """What a few tokens add to an answer."""

    text: str
    num_tokens: int = 0
    """Tokens that came for it; some may have no text, or have theirs held back."""
    tokens: list[ShownToken] = field(default_factory=list)
    """Those whose text is shown with it; empty unless asked for."""


class ChoiceText:
    """One choice's text. Owned by one request."""

    def __init__(self, detokenizer: IncrementalDetokenizer, options: TextOptions) -> None:
        self._detokenizer = detokenizer
        self._options = options
        self._matcher = StopStringMatcher(options.stop_strings) if options.stop_strings else None
        self._held: deque[tuple[ShownToken, int]] = deque()
        """Tokens that have not been told, and where each one's text ends."""
        self._num_characters = 0
        """Of all tokens so far."""
        self._num_shown = 0
        self._ended_by: int | None = None
        self.num_tokens = 0

    @property
    def stop_reason(self) -> str | int | None:
        """The stop string, or the token that the client named, that ended the answer; None if neither did (yet)."""
        if self._matcher is not None and self._matcher.stopped_by is not None:
            return self._matcher.stopped_by
        return self._ended_by

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string has been found; all later tokens are to be dropped."""
        return self._matcher is not None and self._matcher.is_stopped

    def push(self, token_ids: list[int], logprobs: list[TokenLogprobs] | None) -> TextPiece:
        """Return what may be shown now; its text may be empty."""
        if self._matcher is None and not self._options.wants_tokens:
            self.num_tokens += len(token_ids)
            return TextPiece(self._detokenizer.push(self._without_ending(token_ids)), len(token_ids))
        piece = TextPiece("")
        for index, token_id in enumerate(token_ids):
            # One by one, so that neither usage nor the cut depends on how many tokens arrived together.
            self._push_one(token_id, None if logprobs is None else logprobs[index], piece)
            if self.is_stopped:
                break
        return piece

    def finish(self) -> TextPiece:
        """Return the rest, once no token follows."""
        tail = self._detokenizer.finish()
        piece = TextPiece(self._match(tail))
        if self._matcher is not None and not self._matcher.is_stopped:
            piece.text += self._matcher.finish()
        self._num_shown += len(piece.text)
        piece.tokens += [token for token, _ in self._held if not self.is_stopped or token.offset < self._num_shown]
        self._held.clear()
        return piece

    def _without_ending(self, token_ids: list[int]) -> list[int]:
        """Return the tokens that have text: all but one that ends the answer, which can only be the last."""
        if token_ids[-1] not in self._options.ending_token_ids:
            return token_ids
        self._ended_by = token_ids[-1] if token_ids[-1] in self._options.stop_token_ids else None
        return token_ids if self._options.is_ending_shown else token_ids[:-1]

    def _push_one(self, token_id: int, logprobs: TokenLogprobs | None, piece: TextPiece) -> None:
        self.num_tokens += 1
        piece.num_tokens += 1
        with_text = self._without_ending([token_id])
        text = self._detokenizer.push(with_text)
        if self._options.wants_tokens and with_text:
            token = ShownToken(token_id, logprobs, self._num_characters)
            self._held.append((token, self._num_characters + len(text)))
        self._num_characters += len(text)
        shown = self._match(text)
        self._num_shown += len(shown)
        piece.text += shown
        while self._held and self._held[0][1] <= self._num_shown:
            piece.tokens.append(self._held.popleft()[0])

    def _match(self, text: str) -> str:
        """Return what of `text`, and of what was held back before it, cannot belong to a stop string."""
        if self._matcher is None:
            return text
        was_stopped = self._matcher.is_stopped
        shown = self._matcher.push(text)
        if self._options.is_ending_shown and not was_stopped and self._matcher.stopped_by is not None:
            shown += self._matcher.stopped_by
        return shown
