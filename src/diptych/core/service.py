"""What the frontend needs of the router, so that neither imports the other."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol

import msgspec

from diptych.core.events import FinishReason, RequestRecord
from diptych.core.ids import NodeId, WorkerId
from diptych.core.messages import HealthState, PeerAddress, Role, StackSamples, WorkerStatus
from diptych.core.request import Request, TokenLogprobs


class StartOut(msgspec.Struct, frozen=True):
    """The prompt has been read. The first part of every answer."""

    num_cached_tokens: int
    """How many of the prompt's tokens were in the prefix cache, or were loaded into it."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """Of the prompt's tokens from the second on; None unless asked for."""
    num_loaded_tokens: int = 0
    """Of the cached ones, how many came from a tier below memory."""


class TokensOut(msgspec.Struct, frozen=True):
    """The next tokens of one choice, in order, at least one."""

    token_ids: list[int]
    choice: int = 0
    logprobs: list[TokenLogprobs] | None = None
    """One a token; None unless asked for."""


class EndOut(msgspec.Struct, frozen=True):
    """A choice is complete."""

    reason: FinishReason
    choice: int = 0


AnswerPart = StartOut | TokensOut | EndOut


class RunningAnswer(Protocol):
    """An answer on its way, to be iterated over once: a `StartOut`, then tokens and ends of all choices, mixed.

    The last part is the end of the last choice.

    Raises (while iterating): RequestError of the kind that the client shall hear.
    """

    def __aiter__(self) -> AsyncIterator[AnswerPart]:
        """Iterate over its parts."""
        ...

    def stop_choice(self, choice: int) -> None:
        """End a choice here: its client has all it wants. Its `EndOut` comes next, whatever its workers still do."""
        ...


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as the registry sees it."""

    role: Role
    address: PeerAddress
    status: WorkerStatus
    heartbeat_age_s: float
    num_assigned: int
    """Requests that the router has sent there and not seen end."""
    outlook: str = ""
    """Of one that is down: what happens next. Empty: nothing to say."""


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A machine that has joined, as the router sees it."""

    state: Literal["joined", "leaving", "lost"]
    """Serving; on its way out, in order; not heard of for too long."""
    address: str
    key_name: str
    """Of the key that it came with."""
    version: str
    engine: str
    num_cores: int
    segment_bytes: int
    workers: list[WorkerId]
    joined_for_s: float
    silent_s: float
    round_trip_s: float
    clock_offset_s: float
    """By how much the router's clock is ahead."""


class ClusterStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What `diptych status` shows."""

    health: HealthState
    model: str
    max_model_len: int
    num_requests: int
    """Running or waiting now."""
    num_ended: int = 0
    """Since the frontend's start; those that were refused are not counted."""
    num_unread: int = 0
    """Of those, without a first token: waiting, or their prompts are being read."""
    num_elsewhere: int = 0
    """Running or waiting with the server's other frontends, as far as they have told."""
    workers: dict[WorkerId, WorkerInfo]
    num_dropped_messages: int = 0
    """That came to the router and were none, or made no sense."""
    nodes: dict[NodeId, NodeInfo] = {}
    """Machines that have joined this one."""


class RequestService(Protocol):
    """Serves requests on whatever workers there are."""

    def serve(self, request: Request) -> AbstractAsyncContextManager[RunningAnswer]:
        """Admit and place `request`; return its answer.

        Leaving the context before the end aborts the request wherever it is.

        Raises: RequestError of the kind that the client shall hear.
        """
        ...

    def status(self) -> ClusterStatus:
        """Return the state of all workers."""
        ...

    def recent_requests(self) -> list[RequestRecord]:
        """Return the last requests to end, oldest first (a bounded number)."""
        ...


class ClusterService(RequestService, Protocol):
    """Also shows what runs, and takes workers out of service and back, for operators."""

    def unfinished_requests(self, most: int) -> list[RequestRecord]:
        """Return how far the requests that are here have come; those that arrived first, `most` of them."""
        ...

    def drain_worker(self, worker_id: WorkerId, timeout_s: float, *, will_return: bool) -> PeerAddress:
        """Take a worker out of service, in order: nothing new goes there, what runs there ends or goes on elsewhere.

        Returns at once, with the life of it that will end. `will_return`: a new one takes its place.

        Raises: NotFoundError, UnavailableError.
        """
        ...

    def revive_worker(self, worker_id: WorkerId) -> None:
        """Start a worker that was taken out of service, or has crashed too often.

        Raises: NotFoundError, UnavailableError (it is up).
        """
        ...

    async def sample_worker(self, worker_id: WorkerId, duration_s: float) -> StackSamples:
        """Return what a worker was seen doing for that long.

        Raises: NotFoundError, UnavailableError.
        """
        ...

    def drain_node(self, node: NodeId) -> None:
        """Have a machine that has joined leave, in order: its workers end as by `drain_worker`, then its agent.

        Raises: NotFoundError, UnavailableError (it is out of reach).
        """
        ...
