"""One key at work: what it has used of its limits, and the salt that keeps its prompts apart from those of others."""

import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import msgspec

from diptych.core.api_keys import ApiKey
from diptych.core.clock import Clock
from diptych.core.events import RequestRecord
from diptych.core.request import Request
from diptych.core.service import AnswerPart, ClusterStatus, RequestService, RunningAnswer, TokensOut
from diptych.frontend.answer import Generation
from diptych.frontend.errors import KeyLimitError
from diptych.policy.rate_limit import (
    KeyUsage,
    OverLimit,
    begin_request,
    end_request,
    reserve_tokens,
    settle_tokens,
    with_limits,
)

MOST_RESERVED_TOKENS = 256
"""Of each answer, before it is known: most ask for as many as there is room for, and take few."""
SALT_BYTES = 16


class Tenant:
    """Whoever holds a key. Owned by the event loop; outlives changes of the key file."""

    def __init__(self, key: ApiKey, clock: Clock) -> None:
        self.key = key
        self._clock = clock
        self._usage = KeyUsage.none(key.limits, clock.now_s())

    def change(self, key: ApiKey) -> None:
        """Go on under what the key file says now."""
        if key.limits != self.key.limits:
            self._usage = with_limits(self._usage, key.limits, self._clock.now_s())
        self.key = key

    @contextmanager
    def requesting(self) -> Iterator[None]:
        """Count a request while the block runs.

        Raises: KeyLimitError if there may be none now.
        """
        self._usage = _allowed(begin_request(self.key.limits, self._usage, self._clock.now_s()))
        try:
            yield
        finally:
            self._usage = end_request(self._usage)

    @contextmanager
    def spending(self, generation: Generation) -> Iterator["Spending"]:
        """Reserve tokens for a generation and, when the block ends, charge what it has really used.

        Raises: KeyLimitError if there are none left.
        """
        num_reserved = sum(_likely_tokens(request) for request in generation.requests)
        self._usage = _allowed(reserve_tokens(self._usage, num_reserved, self._clock.now_s()))
        spending = Spending()
        try:
            yield spending
        finally:
            self._usage = settle_tokens(self._usage, num_reserved, spending.num_tokens, self._clock.now_s())

    def salted(self, generation: Generation) -> Generation:
        """Return the generation with cache salts of its own, whatever salts other keys' clients choose."""
        requests = [
            msgspec.structs.replace(request, cache_salt=self._salt(request.cache_salt))
            for request in generation.requests
        ]
        return Generation(requests, generation.text)

    def _salt(self, asked: str) -> str:
        secret = hashlib.blake2b(self.key.cache_salt.encode()).digest()
        return hashlib.blake2b(asked.encode(), digest_size=SALT_BYTES, key=secret).hexdigest()


class Spending:
    """What a generation has used: its prompts, and each token that came."""

    def __init__(self) -> None:
        self.num_tokens = 0


class MeteredService:
    """A service whose tokens are counted."""

    def __init__(self, service: RequestService, spending: Spending) -> None:
        self._service = service
        self._spending = spending

    @asynccontextmanager
    async def serve(self, request: Request) -> AsyncIterator[RunningAnswer]:
        """Serve a request. Its prompt counts from the moment that it has been taken."""
        async with self._service.serve(request) as answer:
            self._spending.num_tokens += len(request.prompt_token_ids)
            yield _Metered(answer, self._spending)

    def status(self) -> ClusterStatus:
        """Return the state of all workers."""
        return self._service.status()

    def recent_requests(self) -> list[RequestRecord]:
        """Return the last requests to end."""
        return self._service.recent_requests()


class _Metered:
    def __init__(self, answer: RunningAnswer, spending: Spending) -> None:
        self._answer = answer
        self._spending = spending

    async def __aiter__(self) -> AsyncIterator[AnswerPart]:
        async for part in self._answer:
            if isinstance(part, TokensOut):
                self._spending.num_tokens += len(part.token_ids)
            yield part

    def stop_choice(self, choice: int) -> None:
        """End a choice here."""
        self._answer.stop_choice(choice)


def _likely_tokens(request: Request) -> int:
    num_answer_tokens = min(request.sampling.max_tokens, MOST_RESERVED_TOKENS) * request.num_choices
    return len(request.prompt_token_ids) + num_answer_tokens


def _allowed(decision: KeyUsage | OverLimit) -> KeyUsage:
    if isinstance(decision, OverLimit):
        raise KeyLimitError(f"{decision.reason}; try again later", retry_after_s=decision.retry_after_s)
    return decision
