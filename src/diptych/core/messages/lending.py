"""Between owners of blocks, one of which copies what the other has cached."""

from typing import Annotated

from msgspec import Meta

from diptych.core.bounds import HASH, NAME, Epoch, Moment
from diptych.core.ids import BlockHash, BlockId, RequestId
from diptych.core.messages.peers import Message, PeerAddress


class Borrow(Message, frozen=True, kw_only=True):
    """Keep these cached blocks of yours until I have copied them; tell me which they are."""

    request_id: Annotated[RequestId, NAME]
    epoch: Epoch
    """Names the loan: that of the blocks to copy to. No other loan to this life of a worker has it."""
    borrower: PeerAddress
    hashes: Annotated[list[Annotated[BlockHash, HASH]], Meta(min_length=1)]
    """Of a prompt's first blocks, also of those that need no copy: who uses a block uses all before it."""
    deadline_s: Moment
    """Keep them no longer. A borrower that is late finds out itself what is still there."""


class Lent(Message, frozen=True, kw_only=True):
    """They are yours to read until you return them, or until the deadline."""

    request_id: Annotated[RequestId, NAME]
    epoch: Epoch
    lender: PeerAddress
    block_ids: list[Annotated[BlockId, Meta(ge=0, lt=2**31)]]
    """As many of those asked for, from the prompt's first on, as there are. Empty: none."""


class Returned(Message, frozen=True, kw_only=True):
    """I read those blocks no more."""

    request_id: Annotated[RequestId, NAME]
    epoch: Epoch
    borrower: PeerAddress
