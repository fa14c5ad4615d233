"""Everything that processes say to each other. One way, one message a frame, tagged by type.

The conversation about one request, in place (prefill and decode on one machine):

    router  --Submit-->  decode  --Grant-->  prefill
    router  <-----------Tokens (the first)-- prefill  --Filled-->  decode
    router  <--Tokens (one message a step for all sequences)------ decode

Only the decode worker ends a request (`Finished`, `Failed`). A message of an older attempt or epoch is dropped by
whoever gets it. Where another worker has more of a prompt in its cache, the decode worker may copy it first:

    decode  --Borrow-->  other  --Lent-->  decode (copies)  --Returned-->  other

When a worker has died, `WorkerExited` goes to the router, `PeerGone` to the other workers, and its
requests are submitted anew with what they have come to.
"""

from enum import StrEnum
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from diptych.core.bounds import (
    ENDPOINT,
    HASH,
    MAX_SNAPSHOT_PIECE_BLOCKS,
    NAME,
    Amount,
    Count,
    Epoch,
    Index,
    Ordinal,
    Seconds,
    Share,
    TokenId,
)
from diptych.core.cache_status import CacheStatus
from diptych.core.events import FinishReason, Timeline
from diptych.core.ids import BlockHash, BlockId, RequestId, WorkerId
from diptych.core.request import Request, SampledToken, SamplingParams, TokenLogprobs

PROTOCOL_VERSION = 5
"""Stands before every message (wire/frame.py). It changes with any of them, and is at most 255."""


class Role(StrEnum):
    """What a worker does."""

    PREFILL = "prefill"
    """Reads prompts into blocks that decode workers own."""
    DECODE = "decode"
    """Owns blocks, writes answers; reads a prompt itself where that is cheaper or nobody else can."""
    MIXED = "mixed"
    """Both phases in the same steps (colocated, chunked prefill): the baseline."""


class WorkerState(StrEnum):
    """Where a worker is in its life."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"


class PeerAddress(msgspec.Struct, frozen=True):
    """Whom to write to, and which life of it."""

    worker_id: Annotated[WorkerId, NAME]
    endpoint: Annotated[str, ENDPOINT]
    """Of its inbox, such as `ipc:///run/user/0/diptych-x/decode-0`."""
    incarnation: Count
    """Grows with every restart of this worker id."""


class Message(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Base of all messages; the wire carries the class name as tag."""


# Router to worker


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
    frontend: Count = 0
    """Which life of the frontend asks: when that is over (`FrontendGone`), nobody waits for the answer."""
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


class PeerGone(Message, frozen=True, kw_only=True):
    """This life of a worker is over: it has been reaped and will write no more blocks."""

    worker_id: Annotated[WorkerId, NAME]
    incarnation: Count
    endpoint: Annotated[str, ENDPOINT] | None = None
    """Where it was written to."""

    @property
    def address(self) -> PeerAddress:
        """Whom nobody needs to write to any more."""
        return PeerAddress(self.worker_id, self.endpoint or "", self.incarnation)


class FrontendGone(Message, frozen=True, kw_only=True):
    """This life of the frontend, and all before it, is over: free what its requests hold."""

    incarnation: Count


class CacheSnapshotWanted(Message, frozen=True, kw_only=True):
    """I do not know what is in your prefix cache: tell me all of it (`CacheSnapshot`)."""


# Decode worker to prefill worker


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
    arrived_s: Seconds
    """When the request came, on the node's clock: prompts are read in that order."""
    deadline_s: Seconds


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


# Prefill worker to decode worker


class Filled(Message, frozen=True, kw_only=True):
    """The whole prompt's KV is in the granted blocks; I write no more for this epoch."""

    request_id: Annotated[RequestId, NAME]
    epoch: Epoch
    first_tokens: list[SampledToken]
    """One for each of the grant's choices."""
    prompt_logprobs: list[TokenLogprobs] | None
    """As in `Started`."""
    prefill_started_s: Seconds
    first_token_s: Seconds


class GrantEnded(Message, frozen=True, kw_only=True):
    """I write no more for this epoch; the blocks are not (all) filled."""

    request_id: Annotated[RequestId, NAME]
    epoch: Epoch
    reason: str


class GrantHeld(Message, frozen=True, kw_only=True):
    """I have this grant: its prompt waits for its turn, or I am writing."""

    request_id: Annotated[RequestId, NAME]
    epoch: Epoch


# Between owners of blocks


class Borrow(Message, frozen=True, kw_only=True):
    """Keep these cached blocks of yours until I have copied them; tell me which they are."""

    request_id: Annotated[RequestId, NAME]
    epoch: Epoch
    """Names the loan: that of the blocks to copy to. No other loan to this life of a worker has it."""
    borrower: PeerAddress
    hashes: Annotated[list[Annotated[BlockHash, HASH]], Meta(min_length=1)]
    """Of a prompt's first blocks, also of those that need no copy: who uses a block uses all before it."""
    deadline_s: Seconds
    """On the node's clock: keep them no longer. A borrower that is late finds out itself what is still there."""


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


# Worker to router


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt has been read; comes in the same message as the first token."""

    request_id: Annotated[RequestId, NAME]
    attempt: Count
    num_cached_tokens: Count
    """How many of the prompt's tokens were in the prefix cache, or were loaded into it."""
    num_loaded_tokens: Count = 0
    """Of those, how many came from the tier below the worker's blocks."""
    prompt_logprobs: list[TokenLogprobs] | None
    """Of the prompt's tokens from the second on; None unless asked for."""


class TokenEvent(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """One token of one answer."""

    request_id: Annotated[RequestId, NAME]
    attempt: Count
    index: Index
    """Position in the answer, from 0."""
    token_id: TokenId
    choice: Index = 0
    """Which of the request's answers."""
    logprobs: TokenLogprobs | None = None


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """A choice's end: all its tokens up to `num_output_tokens` have been sent, here or before."""

    request_id: Annotated[RequestId, NAME]
    attempt: Count
    choice: Index
    reason: FinishReason
    num_output_tokens: Count
    num_cached_tokens: Count
    num_loaded_tokens: Count = 0
    """As in `Started`."""
    num_preemptions: Count
    timeline: Timeline


class FailureKind(StrEnum):
    """What the client hears."""

    REFUSED = "refused"
    """Nothing was done; another worker may take it."""
    QUEUED = "queued"
    """Its turn did not come in time; nothing was done."""
    INVALID = "invalid"
    TIMEOUT = "timeout"
    ERROR = "error"


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """A request's end, in all its choices, without an answer or without the rest of it."""

    request_id: Annotated[RequestId, NAME]
    attempt: Count
    kind: FailureKind
    message: str
    timeline: Timeline


class Aborted(msgspec.Struct, frozen=True, kw_only=True):
    """A choice was aborted as asked; its blocks are free."""

    request_id: Annotated[RequestId, NAME]
    choice: Index | None
    """None: all of them, before they went their own ways."""
    num_output_tokens: Count
    timeline: Timeline


class CacheChange(msgspec.Struct, frozen=True, kw_only=True):
    """Which blocks entered and left a worker's prefix cache."""

    sequence: Ordinal
    """Counts a worker's changes from 1; a gap means that some were lost."""
    stored: list[Annotated[BlockHash, HASH]]
    """Each behind the block before it, if that is new too."""
    removed: list[Annotated[BlockHash, HASH]]
    """They left before others were stored: a block may leave and come back."""
    cleared: bool = False
    """Whether all that was there has left."""


class CacheSnapshot(Message, frozen=True, kw_only=True):
    """A piece of all that is in a worker's prefix cache. The pieces of a snapshot are sent in order and at once."""

    worker_id: Annotated[WorkerId, NAME]
    incarnation: Count
    snapshot: Ordinal
    """Counts a worker's snapshots: pieces of two do not fit together, even if they are as of the same change."""
    sequence: Count
    """Of the last change that it includes; 0: there was none."""
    piece: Count
    """From 0."""
    num_pieces: Ordinal
    stored: Annotated[list[Annotated[BlockHash, HASH]], Meta(max_length=MAX_SNAPSHOT_PIECE_BLOCKS)]
    """Each behind the block before it."""


class Tokens(Message, frozen=True, kw_only=True):
    """All that a step brought forth, for all its sequences."""

    worker_id: Annotated[WorkerId, NAME]
    incarnation: Count
    started: list[Started] = []
    tokens: list[TokenEvent] = []
    finished: list[Finished] = []
    failed: list[Failed] = []
    aborted: list[Aborted] = []
    cache_change: CacheChange | None = None


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker says of itself. Counts are of this moment."""

    state: WorkerState
    pid: Count
    cores: Annotated[list[Count], Meta(max_length=4096)]
    engine: Annotated[str, NAME]
    """Such as `openvino f32 KV`."""
    num_blocks: Count
    """Owned by this worker; 0 for one that writes no answers."""
    num_free_blocks: Count
    """Neither referenced nor cached."""
    num_cached_blocks: Count
    """In the prefix cache without a user: free as soon as they are needed."""
    num_running: Count
    num_waiting: Count
    queued_prefill_tokens: Count
    prefill_tokens_per_s: Amount
    """Measured; of the warm-up until the first real prompts."""
    decode_step_s: Seconds
    """A running mean; 0.0 before the first step."""
    memory_bytes: Count
    """Private memory of the process (the segment not counted)."""
    num_steps: Count
    num_answers: Count = 0
    """Of its own, running and waiting; grants are not counted."""
    cache: CacheStatus | None = None
    """None: it writes no answers, and caches nothing."""
    cost_scale: Annotated[float, Meta(gt=0, le=1e6)] = 1.0
    """How many times as long steps take of late as the cost model says."""
    prefill_share: Share = 0.0
    """Of its time of late, spent on prompts."""
    copy_block_s: Seconds = 0.0
    """How long it takes this worker to copy a block within the segment; measured."""
    num_dropped_messages: Count = 0
    """That came to it and were none, or made no sense."""
    cache_sequence: Count = 0
    """Of the last change of its prefix cache: a router that has not heard of that one has missed some."""
    num_damaged_blocks: Count = 0
    """How often it met a block that does not hold what was written there; 0 without --kv-checksums."""


class Heartbeat(Message, frozen=True, kw_only=True):
    """I live. Sent on every change of state and at least every `HEARTBEAT_INTERVAL_S`."""

    role: Role
    address: PeerAddress
    status: WorkerStatus


# Launcher to router


class WorkerExited(Message, frozen=True, kw_only=True):
    """A worker's process has been reaped."""

    worker_id: Annotated[WorkerId, NAME]
    incarnation: Count
    exit_status: int
    will_return: bool = False
    """Whether a replacement is on its way."""
    outlook: str = ""
    """What happens next, for people."""


# What is left of a malformed message


class RequestRemains(msgspec.Struct, frozen=True, kw_only=True):
    """All that could be read of a request."""

    request_id: Annotated[RequestId, NAME]


class SubmitRemains(Message, frozen=True, kw_only=True, tag="Submit"):
    """All that could be read of a `Submit`: enough to refuse it."""

    request: RequestRemains
    attempt: Count


class GrantRemains(Message, frozen=True, kw_only=True, tag="Grant"):
    """All that could be read of a `Grant`: enough to give it back."""

    request_id: Annotated[RequestId, NAME]
    epoch: Epoch
    decode: PeerAddress


Remains = SubmitRemains | GrantRemains

ToWorker = (
    Submit
    | Abort
    | PeerGone
    | FrontendGone
    | CacheSnapshotWanted
    | Grant
    | Revoke
    | Remind
    | Filled
    | GrantEnded
    | GrantHeld
    | Borrow
    | Lent
    | Returned
)
ToRouter = Tokens | CacheSnapshot | Heartbeat | WorkerExited

HEARTBEAT_INTERVAL_S = 0.5

HealthState = Literal["ready", "starting", "unavailable", "draining"]
