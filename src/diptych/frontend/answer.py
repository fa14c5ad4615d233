"""Follows one request through the service and turns its tokens into text. The way back of a request's life.

Invariant: however the following ends (end of the answer, stop string, an exception, cancellation), the service's
context has been left, so blocks are free or being freed.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from diptych.core.events import FinishReason
from diptych.core.request import Request
from diptych.core.service import EndOut, RequestService
from diptych.frontend.detokenizer import IncrementalDetokenizer
from diptych.frontend.openai_responses import AnswerEnd, PromptTokensDetails, Usage
from diptych.frontend.stop_strings import StopStringMatcher


class AnswerText:
    """The text of one answer as it grows: detokenized, and cut before a stop string."""

    def __init__(self, detokenizer: IncrementalDetokenizer, stop_strings: list[str]) -> None:
        self._detokenizer = detokenizer
        self._matcher = StopStringMatcher(stop_strings) if stop_strings else None
        self.num_tokens = 0

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string has been found; all later tokens are to be dropped."""
        return self._matcher is not None and self._matcher.is_stopped

    def push(self, token_ids: list[int]) -> str:
        """Return the text that may be shown now; may be empty."""
        if self._matcher is None:
            self.num_tokens += len(token_ids)
            return self._detokenizer.push(token_ids)
        pieces: list[str] = []
        for token_id in token_ids:
            # One by one, so that usage does not depend on how many tokens arrived together.
            self.num_tokens += 1
            pieces.append(self._matcher.push(self._detokenizer.push((token_id,))))
            if self._matcher.is_stopped:
                break
        return "".join(pieces)

    def finish(self) -> str:
        """Return the rest, once no token follows."""
        tail = self._detokenizer.finish()
        if self._matcher is None:
            return tail
        shown = self._matcher.push(tail)
        return shown + self._matcher.finish()


async def follow_answer(
    service: RequestService, request: Request, text: AnswerText
) -> AsyncGenerator[str | AnswerEnd, None]:
    """Yield an answer's text in pieces, and its end last.

    The first piece comes with the first token, even if it is empty: the answer has begun. A stop string aborts the
    request before its last piece is yielded. Close the iterator to abort.

    Raises: RequestError as `RequestService.serve`.
    """
    end: EndOut | None = None
    last_piece = ""
    async with service.serve(request) as parts:
        async for part in parts:
            if isinstance(part, EndOut):
                end = part
                break
            piece = text.push(part.token_ids)
            if text.is_stopped:
                last_piece = piece
                break
            yield piece
    if end is None and not text.is_stopped:
        raise RuntimeError(f"the service ended {request.request_id} without an EndOut")
    last_piece += text.finish()
    yield last_piece
    yield _answer_end(request, text, end)


def _answer_end(request: Request, text: AnswerText, end: EndOut | None) -> AnswerEnd:
    is_length = end is not None and end.reason is FinishReason.LENGTH and not text.is_stopped
    num_prompt_tokens = len(request.prompt_token_ids)
    usage = Usage(
        prompt_tokens=num_prompt_tokens,
        completion_tokens=text.num_tokens,
        total_tokens=num_prompt_tokens + text.num_tokens,
        prompt_tokens_details=None if end is None else PromptTokensDetails(end.num_cached_tokens),
    )
    return AnswerEnd("length" if is_length else "stop", usage)


async def collect_answer(service: RequestService, request: Request, text: AnswerText) -> tuple[str, AnswerEnd]:
    """Return the whole text of an answer and its end.

    Raises: RequestError as `RequestService.serve`.
    """
    pieces: list[str] = []
    async with aclosing(follow_answer(service, request, text)) as answer:
        async for piece in answer:
            if isinstance(piece, AnswerEnd):
                return "".join(pieces), piece
            pieces.append(piece)
    raise AssertionError("follow_answer ends with an AnswerEnd")
