"""What the frontend needs of the router, so that neither imports the other."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from diptych.core.events import FinishReason, RequestRecord
from diptych.core.ids import WorkerId
from diptych.core.messages import HealthState, PeerAddress, Role, WorkerStatus
from diptych.core.request import Request


class TokensOut(msgspec.Struct, frozen=True):
    """The next tokens of an answer, in order, at least one."""

    token_ids: list[int]


class EndOut(msgspec.Struct, frozen=True):
    """The answer is complete."""

    reason: FinishReason
    num_cached_tokens: int


AnswerPart = TokensOut | EndOut


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as the registry sees it."""

    role: Role
    address: PeerAddress
    status: WorkerStatus
    heartbeat_age_s: float
    num_assigned: int
    """Requests that the router has sent there and not seen end."""


class ClusterStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What `diptych status` shows."""

    health: HealthState
    model: str
    max_model_len: int
    num_requests: int
    """Running or waiting now."""
    workers: dict[WorkerId, WorkerInfo]


class RequestService(Protocol):
    """Serves requests on whatever workers there are."""

    def serve(self, request: Request) -> AbstractAsyncContextManager[AsyncIterator[AnswerPart]]:
        """Admit and place `request`; iterate over its answer, whose last part is an `EndOut`.

        Leaving the context before the end aborts the request wherever it is.

        Raises (on entering or while iterating): RequestError of the kind that the client shall hear.
        """
        ...

    def status(self) -> ClusterStatus:
        """Return the state of all workers."""
        ...

    def recent_requests(self) -> list[RequestRecord]:
        """Return the last requests to end, oldest first (a bounded number)."""
        ...
