"""An answer on its way from the workers to the HTTP stream: each choice put in order, each token once.

The first token comes from the prefill worker's socket and the rest from the decode worker's, so token 1, and even the
end, may be here before token 0. Nothing is handed out before all that precedes it.

Invariants: the stream yields one start, then for each choice tokens 0, 1, 2, ... without gap or repetition and one end,
or at last one error, and nothing after that. The buffers need no limit of their own: a token is kept at most once and
only below `max_tokens`, so a choice never holds more than `max_tokens` of them, however slowly the client reads and
whatever the workers send.
"""

import asyncio
from collections.abc import Iterable

from diptych.core.errors import RequestError
from diptych.core.events import FinishReason
from diptych.core.messages import TokenEvent, TokenRun
from diptych.core.request import TokenLogprobs
from diptych.core.service import AnswerPart, EndOut, StartOut, TokensOut


class Choice:
    """One choice of an answer."""

    def __init__(self, number: int, max_tokens: int) -> None:
        self.number = number
        self.token_ids: list[int] = []
        """Those that the stream has got or can get now: whoever goes on after a worker's death goes on from here."""
        self.end: EndOut | None = None
        """Set once all tokens before it are here; nothing changes the choice any more."""
        self._max_tokens = self._limit = max_tokens
        self._readable: list[TokenEvent | TokenRun] = []
        self._out_of_order: dict[int, TokenEvent] = {}
        self._held_end: EndOut | None = None
        self._is_end_read = False

    @property
    def num_in_order(self) -> int:
        """Length of `token_ids`; the next token to come has this index."""
        return len(self.token_ids)

    @property
    def has_news(self) -> bool:
        """Whether the stream can get anything now."""
        return bool(self._readable) or (self.end is not None and not self._is_end_read)

    def put_token(self, token: TokenEvent) -> bool:
        """Take a token; False: it was here already, or none can have this index, or the choice has ended."""
        index = token.index
        if self.end is not None or not self.num_in_order <= index < self._limit or index in self._out_of_order:
            return False
        if index == self.num_in_order and not self._out_of_order:
            self._append(token)
        else:
            self._out_of_order[index] = token
            while self.num_in_order in self._out_of_order:
                self._append(self._out_of_order.pop(self.num_in_order))
        self._end_if_complete()
        return True

    def put_run(self, run: TokenRun) -> int:
        """Take the tokens of a run that are not here yet; return how many those are, 0 if they cannot be used.

        A run that begins beyond the next token is of no use: who sends runs sends all of a choice's tokens, in order.
        """
        num_known = self.num_in_order - run.index
        token_ids = run.token_ids[num_known : self._limit - run.index] if num_known >= 0 else []
        if self.end is not None or self._out_of_order or not token_ids:
            return 0
        self._readable.append(TokenRun(run.request_id, run.attempt, self.num_in_order, token_ids, run.choice))
        self.token_ids += token_ids
        self._end_if_complete()
        return len(token_ids)

    def _append(self, token: TokenEvent) -> None:
        self._readable.append(token)
        self.token_ids.append(token.token_id)

    def put_end(self, end: EndOut, num_output_tokens: int) -> None:
        """Take the end; the stream gets it once all `num_output_tokens` tokens have come."""
        if self._held_end is None:
            self._held_end = end
            self._limit = num_output_tokens
            self._end_if_complete()

    def stop(self) -> None:
        """End here, after what the stream has got: what it has not is of no use to anyone."""
        if self.end is None:
            self._readable.clear()
            self._out_of_order.clear()
            self.end = EndOut(FinishReason.STOP, self.number)

    def restart(self) -> None:
        """Forget what came out of order: another attempt brings its own."""
        self._out_of_order.clear()
        self._held_end, self._limit = None, self._max_tokens

    def _end_if_complete(self) -> None:
        if self._held_end is not None and self.num_in_order >= self._limit:
            self.end = self._held_end
            self._out_of_order.clear()

    def read(self) -> AnswerPart:
        """Return what is new."""
        if self._readable:
            news, self._readable = self._readable, []
            token_ids: list[int] = []
            logprobs: list[TokenLogprobs] = []
            for token in news:
                if isinstance(token, TokenRun):
                    token_ids += token.token_ids
                    continue
                token_ids.append(token.token_id)
                if token.logprobs is not None:
                    logprobs.append(token.logprobs)
            return TokensOut(token_ids, self.number, logprobs or None)
        assert self.end is not None and not self._is_end_read
        self._is_end_read = True
        return self.end


class Answer:
    """The receive loop puts in, the HTTP stream iterates; both on one event loop.

    Iterating waits without a limit of its own: the router's deadline sweep ends every answer.
    """

    def __init__(self, max_tokens: int, num_choices: int = 1) -> None:
        self._choices = [Choice(number, max_tokens) for number in range(num_choices)]
        self._start: StartOut | None = None
        self._is_start_read = False
        self._error: RequestError | None = None
        self._wake = asyncio.Event()

    @property
    def num_in_order(self) -> int:
        """Tokens, of all choices, that the client has got or will get whatever happens."""
        return sum(choice.num_in_order for choice in self._choices)

    @property
    def is_settled(self) -> bool:
        """Whether the stream's end is decided; nothing changes it any more."""
        return self._error is not None or all(choice.end is not None for choice in self._choices)

    @property
    def error(self) -> RequestError | None:
        """What the stream ends with, if not with an answer."""
        return self._error

    @property
    def num_cached_tokens(self) -> int:
        """How many of the prompt's tokens were in the prefix cache, as far as known."""
        return 0 if self._start is None else self._start.num_cached_tokens

    @property
    def num_loaded_tokens(self) -> int:
        """Of those, how many came from a tier below memory."""
        return 0 if self._start is None else self._start.num_loaded_tokens

    @property
    def reasons(self) -> Iterable[FinishReason]:
        """Why each choice that has ended did so."""
        return [choice.end.reason for choice in self._choices if choice.end is not None]

    def has_ended(self, number: int | None) -> bool:
        """Whether the stream's end of a choice (None: of all) is decided."""
        return all(choice.end is not None for choice in self._choices if number in {None, choice.number})

    def has_choice(self, number: int) -> bool:
        """Whether the answer has a choice of this number."""
        return 0 <= number < len(self._choices)

    def put_start(
        self, num_cached_tokens: int, prompt_logprobs: list[TokenLogprobs] | None, num_loaded_tokens: int = 0
    ) -> None:
        """Take the news that the prompt has been read; only the first counts."""
        if self._start is None:
            self._start = StartOut(num_cached_tokens, prompt_logprobs, num_loaded_tokens)
            self._wake.set()

    def put_token(self, token: TokenEvent) -> bool:
        """Take a token of a choice; False if it is of no use (see `Choice.put_token`)."""
        if self._error is not None or not self.has_choice(token.choice):
            return False
        is_new = self._choices[token.choice].put_token(token)
        self._wake.set()
        return is_new

    def put_run(self, run: TokenRun) -> int:
        """Take tokens of a choice that follow each other; return how many of them are new (see `Choice.put_run`)."""
        if self._error is not None or not self.has_choice(run.choice):
            return 0
        num_new = self._choices[run.choice].put_run(run)
        self._wake.set()
        return num_new

    def put_end(self, number: int, reason: FinishReason, num_output_tokens: int) -> None:
        """Take the end of a choice; the stream gets it once its `num_output_tokens` tokens have come."""
        if self._error is None and self.has_choice(number):
            self._choices[number].put_end(EndOut(reason, number), num_output_tokens)
            self._wake.set()

    def stop(self, number: int) -> None:
        """End a choice here, as its client asks."""
        self._choices[number].stop()
        self._wake.set()

    def fail(self, error: RequestError) -> None:
        """Let the stream raise `error` after the tokens that are in order; without effect if it is settled."""
        if not self.is_settled:
            self._error = error
            self._wake.set()

    def restart(self) -> None:
        """Forget what came out of order: another attempt goes on from what came in order."""
        for choice in self._choices:
            if choice.end is None:
                choice.restart()

    def open_answers(self) -> dict[int, list[int]]:
        """Return the tokens in order of each choice that has not ended."""
        return {choice.number: list(choice.token_ids) for choice in self._choices if choice.end is None}

    def __aiter__(self) -> "Answer":
        return self

    async def __anext__(self) -> AnswerPart:
        while True:
            news = next((choice for choice in self._choices if choice.has_news), None)
            if not self._is_start_read and (news is not None or self._start is not None):
                self._is_start_read = True
                return self._start or StartOut(0)
            if news is not None:
                return news.read()
            if self._error is not None:
                raise self._error
            if self.is_settled:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
