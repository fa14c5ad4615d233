"""Between the owner of a prompt's blocks and the prefill worker that reads it."""

from typing import Annotated

from msgspec import Meta

from diptych.core.bounds import ENDPOINT, HASH, NAME, ROUTER, Count, Epoch, Index, Moment, Ordinal, TokenId
from diptych.core.ids import FIRST_ROUTER, BlockHash, BlockId, RequestId, RouterId
from diptych.core.messages.peers import Message, PeerAddress
from diptych.core.request import SampledToken, SamplingParams, TokenLogprobs


class Grant(Message, frozen=True, kw_only=True):
    """Permission to write a prompt's KV into these blocks, until you answer with this epoch."""

    request_id: Annotated[RequestId, NAME]
    attempt: Count
    epoch: Epoch
    """Also stands in the header of every granted block; where the two differ, the grant is void."""
    decode: PeerAddress
    prompt_token_ids: Annotated[list[TokenId], Meta(min_length=1)]
    num_cached_tokens: Count
    """How many of the prompt's first tokens are in the blocks already, in full ones or, after a migration, in the first
    that is to be written."""
    num_loaded_tokens: Count = 0
    """Of those, how many came from the tier below the blocks: told on in `Started`."""
    block_table: list[Annotated[BlockId, Meta(ge=0, lt=2**31)]]
    """Enough blocks for the whole prompt; those of the cached tokens are shared and must not be written."""
    shared_epochs: list[Epoch]
    """Under which the shared blocks, the first ones, were written."""
    block_hashes: list[Annotated[BlockHash, HASH]]
    """Names of the blocks that the prompt fills."""
    sampling: SamplingParams
    choices: list[Index]
    """Which answers of the request begin with this prompt: a first token is sampled for each. None if the answer has
    begun before, and its prompt must only be read again."""
    first_token_mask: bytes | None
    """Which tokens the request's grammar lets begin an answer, a bit a token; None: all."""
    arrived_s: Moment
    """When the request came: prompts are read in that order."""
    deadline_s: Moment
    router: Annotated[RouterId, ROUTER] = FIRST_ROUTER
    """Who is told of the first tokens."""
    transfer: Annotated[str, ENDPOINT] | None = None
    """`host:port` of the granter's receiver, if its machine is another: compute elsewhere, and push the blocks there
    (transfer/base.py). None: it is the same, compute in the blocks."""


class Revoke(Message, frozen=True, kw_only=True):
    """Stop writing for this grant and say so with `GrantEnded`."""

    request_id: Annotated[RequestId, NAME]
    epoch: Epoch
    decode: PeerAddress


class Remind(Message, frozen=True, kw_only=True):
    """Say at once whether you have this grant: `GrantHeld`, or else `GrantEnded`."""

    request_id: Annotated[RequestId, NAME]
    epoch: Epoch
    decode: PeerAddress


class Filled(Message, frozen=True, kw_only=True):
    """The whole prompt's KV is in the granted blocks; I write no more for this epoch."""

    request_id: Annotated[RequestId, NAME]
    epoch: Epoch
    first_tokens: list[SampledToken]
    """One for each of the grant's choices."""
    prompt_logprobs: list[TokenLogprobs] | None
    """As in `Started`."""
    prefill_started_s: Moment
    first_token_s: Moment
    is_ahead: bool = False
    """Said by a worker of another machine while the last bytes are on their way, inline: it counts when your receiver
    has them all. It will be said again then."""


class GrantEnded(Message, frozen=True, kw_only=True):
    """I write no more for this epoch; the blocks are not (all) filled."""

    request_id: Annotated[RequestId, NAME]
    epoch: Epoch
    reason: str


class GrantHeld(Message, frozen=True, kw_only=True):
    """I have this grant: its prompt waits for its turn, or I am writing."""

    request_id: Annotated[RequestId, NAME]
    epoch: Epoch


class Pushed(Message, frozen=True, kw_only=True):
    """From another machine: so much of the prompt has landed in the granted blocks, and counts."""

    request_id: Annotated[RequestId, NAME]
    epoch: Epoch
    num_tokens: Ordinal
    """Of the prompt, from its first on."""
