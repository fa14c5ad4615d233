"""An answer on its way from the workers to the HTTP stream: put in order, each token once.

The first token comes from the prefill worker's socket and the rest from the decode worker's, so token 1, and even the
end, may be here before token 0. Nothing is handed out before all that precedes it.

Invariants: the stream yields tokens 0, 1, 2, ... without gap or repetition, then one end or one error, and nothing
after that. The buffer needs no limit of its own: a token is kept at most once and only below `max_tokens`, so it never
holds more than `max_tokens` numbers, however slowly the client reads and whatever the workers send.
"""

import asyncio

from diptych.core.errors import RequestError
from diptych.core.service import AnswerPart, EndOut, TokensOut


class Answer:
    """The receive loop puts in, the HTTP stream iterates; both on one event loop.

    Iterating waits without a limit of its own: the router's deadline sweep ends every answer.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._num_in_order = 0
        """Tokens that the stream has got or can get now; the next one to come has this index."""
        self._readable: list[int] = []
        self._out_of_order: dict[int, int] = {}
        self._held_end: tuple[EndOut, int] | None = None
        """The end, and how many tokens come before it."""
        self._outcome: EndOut | RequestError | None = None
        self._is_end_read = False
        self._wake = asyncio.Event()

    @property
    def num_in_order(self) -> int:
        """Tokens that the client has got or will get whatever happens."""
        return self._num_in_order

    @property
    def is_settled(self) -> bool:
        """Whether the stream's end is decided; nothing changes it any more."""
        return self._outcome is not None

    @property
    def is_end_held(self) -> bool:
        """Whether the end is here while tokens before it are missing."""
        return self._held_end is not None and self._outcome is None

    def put_token(self, index: int, token_id: int) -> bool:
        """Take a token; False: it was here already, or none can have this index, or the stream is settled."""
        limit = self._max_tokens if self._held_end is None else self._held_end[1]
        if self.is_settled or not self._num_in_order <= index < limit or index in self._out_of_order:
            return False
        self._out_of_order[index] = token_id
        while self._num_in_order in self._out_of_order:
            self._readable.append(self._out_of_order.pop(self._num_in_order))
            self._num_in_order += 1
        self._settle_if_complete()
        self._wake.set()
        return True

    def put_end(self, end: EndOut, num_output_tokens: int) -> None:
        """Take the end; the stream gets it once all `num_output_tokens` tokens have come."""
        if not self.is_settled and self._held_end is None:
            self._held_end = (end, num_output_tokens)
            self._settle_if_complete()

    def fail(self, error: RequestError) -> None:
        """Let the stream raise `error` after the tokens that are in order; without effect if it is settled."""
        if not self.is_settled:
            self._settle(error)

    def restart(self) -> None:
        """Forget tokens that came out of order: another attempt brings its own. Only while none came in order."""
        if self._num_in_order:
            raise AssertionError("the client has tokens of this attempt already")
        self._out_of_order.clear()

    def _settle_if_complete(self) -> None:
        if self._held_end is not None and self._num_in_order >= self._held_end[1]:
            self._settle(self._held_end[0])

    def _settle(self, outcome: EndOut | RequestError) -> None:
        self._outcome = outcome
        self._out_of_order.clear()
        self._wake.set()

    def __aiter__(self) -> "Answer":
        return self

    async def __anext__(self) -> AnswerPart:
        while not self._readable and self._outcome is None:
            self._wake.clear()
            await self._wake.wait()
        if self._readable:
            part = TokensOut(self._readable)
            self._readable = []
            return part
        if isinstance(self._outcome, RequestError):
            raise self._outcome
        if self._outcome is None or self._is_end_read:
            raise StopAsyncIteration
        self._is_end_read = True
        return self._outcome
