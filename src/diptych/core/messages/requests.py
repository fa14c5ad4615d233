"""What the router tells workers of requests, and of those that are gone."""

from typing import Annotated

import msgspec
from msgspec import Meta

from diptych.core.bounds import ENDPOINT, NAME, ROUTER, Count, Index, Ordinal, TokenId
from diptych.core.ids import FIRST_ROUTER, RequestId, RouterId, WorkerId
from diptych.core.messages.peers import Message, PeerAddress
from diptych.core.request import Request


class FormerAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt whose worker is dead. What it has written may still be in that worker's blocks."""

    worker_id: Annotated[WorkerId, NAME]
    attempt: Count


class CopyOrder(msgspec.Struct, frozen=True):
    """What to copy from another worker's prefix cache before the rest of a prompt is read."""

    num_blocks: Ordinal
    """Of the prompt's first full blocks; those that the owner has itself included, which need no copy."""
    source: PeerAddress


class Submit(Message, frozen=True, kw_only=True):
    """Serve this request: you own its blocks from now to its end."""

    request: Request
    attempt: Count
    """Which try at this request this is, from 0; token events repeat it."""
    prefill: PeerAddress | None
    """Who reads the prompt; None: you do."""
    router: Annotated[RouterId, ROUTER] = FIRST_ROUTER
    """Which router asks: what comes of the request goes there."""
    frontend: Count = 0
    """Which life of its frontend: when that is over (`FrontendGone`), nobody waits for the answer."""
    answers: Annotated[dict[Index, list[TokenId]], Meta(min_length=1)] | None = None
    """Of each choice that is to go on, the tokens that its client has got or will get. None: none has begun."""
    former: FormerAttempt | None = None
    """The attempt that brought those tokens, or was to."""
    copy: CopyOrder | None = None
    """None: use what is in your own cache."""


class Abort(Message, frozen=True, kw_only=True):
    """Nobody waits for this request, or this choice of it, any more; free what it holds."""

    request_id: Annotated[RequestId, NAME]
    choice: Index | None = None
    """None: all of them."""
    router: Annotated[RouterId, ROUTER] = FIRST_ROUTER
    """Which router has asked for it: no other's request is meant, should one be called the same."""


class PeerGone(Message, frozen=True, kw_only=True):
    """This life of a worker is over: it has been reaped and will write no more blocks."""

    worker_id: Annotated[WorkerId, NAME]
    incarnation: Count
    endpoint: Annotated[str, ENDPOINT] | None = None
    """Where it was written to."""
    is_reaped: bool = True
    """Whether its process is known to be dead. If not, its whole machine is out of reach and may still be writing
    wherever a network lets it."""

    @property
    def address(self) -> PeerAddress:
        """Whom nobody needs to write to any more."""
        return PeerAddress(self.worker_id, self.endpoint or "", self.incarnation)


class FrontendGone(Message, frozen=True, kw_only=True):
    """This life of a router's frontend, and all before it, is over: free what its requests hold."""

    incarnation: Count
    router: Annotated[RouterId, ROUTER] = FIRST_ROUTER
