"""What stands between a worker's inbox and its roles: messages that are well-formed and make no sense are dropped.

Whoever waits for an answer gets one: the router of a request that it is refused, a decode worker of a grant that
nothing is written. So roles need not doubt what they are told, and no message can make them fail, hold what nobody
will free, or write where they must not. (A message that makes sense is believed: who can write to an inbox is the same
user, and could as well end the process.)
"""

import math
from collections.abc import Iterable, Iterator
from typing import Protocol

import msgspec

from diptych.core.clock import Clock
from diptych.core.control import WorkerOrder
from diptych.core.errors import BlockTableError, PeerUnreachableError
from diptych.core.ids import RouterId, WorkerId
from diptych.core.messages import (
    Borrow,
    CacheSnapshotWanted,
    Failed,
    FailureKind,
    Filled,
    Grant,
    GrantEnded,
    GrantRemains,
    Lent,
    Message,
    PeerAddress,
    PeerGone,
    Pushed,
    Remains,
    Remind,
    Revoke,
    Role,
    SampleStacks,
    Submit,
    SubmitRemains,
    Tokens,
    ToWorker,
)
from diptych.core.request import SampledToken, SamplingParams
from diptych.engine.base import Row, StepEngine
from diptych.models.grammar_guide import WORD_BITS
from diptych.wire.dropped import DroppedMessages
from diptych.wire.mailbox import Outbox
from diptych.worker.decode import DecodeRole
from diptych.worker.handoff import Handoff
from diptych.worker.lending_faults import find_lending_fault
from diptych.worker.memory import StepPart, WorkerMemory
from diptych.worker.prefill import PrefillRole

MASK_WORD_BYTES = WORD_BITS // 8
CLOCK_SLACK_S = 1.0
"""How far in the future a request may have arrived."""


class KnowsWorkers(Protocol):
    """Says which workers the server has (wire/neighbours.py, `Neighbours`)."""

    def knows(self, worker_id: WorkerId) -> bool:
        """Tell whether the server has such a worker."""
        ...

    def may_have_been(self, worker_id: WorkerId, incarnation: int) -> bool:
        """Tell whether there is, or was, such a life of a worker, or may have been on another machine."""
        ...

    def try_find(self, address: PeerAddress) -> Role | None:
        """Return the role of the life of a worker that has its inbox there; None if there is none."""
        ...


class Inspector:
    """Passes a worker's messages on to its roles, of which it may have one or both."""

    def __init__(  # noqa: PLR0913, PLR0917  what there is to compare with
        self,
        order: WorkerOrder,
        engine: StepEngine,
        memory: WorkerMemory,
        outbox: Outbox,
        clock: Clock,
        dropped: DroppedMessages,
        neighbours: KnowsWorkers,
        prefill: PrefillRole | None,
        decode: DecodeRole | None,
    ) -> None:
        self._order = order
        self._vocab_size = engine.vocab_size
        self._memory = memory
        self._block_size = memory.layout.block_size
        self._outbox = outbox
        self._clock = clock
        self._dropped = dropped
        self._neighbours = neighbours
        self._prefill = prefill
        self._decode = decode

    @property
    def _has_cache(self) -> bool:
        return self._decode is not None or (self._prefill is not None and self._prefill.remote is not None)

    def passed(self, messages: Iterable[ToWorker | Remains]) -> Iterator[ToWorker]:
        """Yield those that make sense; each is judged when the roles have seen the ones before it."""
        for message in messages:
            match message:
                case SubmitRemains():  # counted when it could not be decoded
                    self._refuse(message, FailureKind.INVALID, "the request is malformed")
                case GrantRemains():
                    self._give_back(message, "the grant is malformed")
                case _:
                    fault = self._find_fault(message)
                    if fault is None:
                        yield self._without_absent(message)
                    else:
                        self._dropped.add(f"{type(message).__name__}: {fault}")
                        self._answer(message, fault)

    # Who waits

    def _answer(self, message: ToWorker, fault: str) -> None:
        match message:
            case Submit():
                self._refuse(message, FailureKind.INVALID if self._decode is not None else FailureKind.REFUSED, fault)
            case Grant() | Revoke() | Remind():
                self._give_back(message, fault)
            case Borrow():
                self._lend_nothing(message)
            case _:
                pass

    def _refuse(self, submit: Submit | SubmitRemains, kind: FailureKind, fault: str) -> None:
        """Tell the router that asks that its attempt comes to nothing; not if that attempt is being served."""
        request_id = submit.request.request_id
        here = [] if self._decode is None else self._decode.roster.find(request_id)
        own = [sequence for sequence in here if sequence.router == submit.router]
        if any(sequence.attempt == submit.attempt for sequence in own):
            return
        router_endpoint = self._order.routers.get(submit.router)
        if router_endpoint is None:
            return
        failed = Failed(
            request_id=request_id,
            attempt=submit.attempt,
            kind=FailureKind.REFUSED if own else kind,
            message=f"{self._order.worker_id} cannot serve this: {fault}",
            timeline={},
        )
        order = self._order
        message = Tokens(worker_id=order.worker_id, incarnation=order.incarnation, failed=[failed])
        self._send(router_endpoint, message)

    def _give_back(self, message: Grant | Revoke | Remind | GrantRemains, fault: str) -> None:
        """Tell the owner of granted blocks that nothing is written there; not if that grant is being read."""
        if self._neighbours.try_find(message.decode) is None:
            return
        if self._prefill is not None and self._prefill.has_grant(message.epoch, message.decode):
            return
        reason = f"{self._order.worker_id} refuses: {fault}"
        ended = GrantEnded(request_id=message.request_id, epoch=message.epoch, reason=reason)
        self._send(message.decode.endpoint, ended)

    def _lend_nothing(self, message: Borrow) -> None:
        """Tell who wants to copy that there is nothing; not if it has got something under that epoch."""
        if not self._is_other_owner(message.borrower):
            return
        if self._decode is not None and self._decode.loans.has(message.epoch, message.borrower):
            return
        request_id, epoch = message.request_id, message.epoch
        lent = Lent(request_id=request_id, epoch=epoch, lender=self._order.address, block_ids=[])
        self._send(message.borrower.endpoint, lent)

    def _send(self, endpoint: str, message: Message) -> None:
        try:
            self._outbox.send(endpoint, message)
        except PeerUnreachableError as error:
            self._dropped.add(f"and cannot say so: {error}")

    # What makes no sense

    def _find_fault(self, message: ToWorker) -> str | None:  # noqa: PLR0911  a case a kind
        """Return what is wrong with a message; None: nothing."""
        match message:
            case Submit():
                return self._find_submit_fault(message)
            case Grant():
                return self._find_granter_fault(message.decode) or self._find_grant_fault(message)
            case Revoke() | Remind():
                return self._find_granter_fault(message.decode)
            case Filled() | Pushed():
                return self._find_writers_fault(message)
            case PeerGone():
                return self._find_gone_fault(message)
            case CacheSnapshotWanted() if not self._has_cache:
                return "this worker has no prefix cache"
            case CacheSnapshotWanted(router=router) | SampleStacks(router=router):
                return self._find_router_fault(router)
            case _:
                return find_lending_fault(message, self._decode, self._memory, self._is_other_owner)

    def _find_submit_fault(self, message: Submit) -> str | None:
        if self._decode is None:
            return "this worker writes no answers"
        request = message.request
        if self._decode.roster.find(request.request_id):
            return f"{request.request_id} is here already"
        return (
            self._find_router_fault(message.router)
            or self._find_prompt_fault(request.prompt_token_ids, request.arrived_s)
            or self._find_sampling_fault(request.sampling)
            or self._find_answers_fault(message)
        )

    def _find_router_fault(self, router: RouterId) -> str | None:
        return None if router in self._order.routers else f"there is no router {router}"

    def _find_answers_fault(self, message: Submit) -> str | None:
        request = message.request
        for choice, token_ids in (message.answers or {}).items():
            if choice >= request.num_choices or len(token_ids) > request.sampling.max_tokens:
                return f"an answer of {len(token_ids)} tokens as choice {choice} was not asked for"
            if (fault := self._find_token_fault(token_ids)) is not None:
                return fault
        if message.former is not None and not self._neighbours.knows(message.former.worker_id):
            return f"there is no worker {message.former.worker_id}"
        return None

    def _without_absent(self, message: ToWorker) -> ToWorker:
        """Let this worker read, or compute, itself what those were to read, or to lend, who are not there."""
        if not isinstance(message, Submit):
            return message
        prefill, copy = message.prefill, message.copy
        if prefill is not None and self._neighbours.try_find(prefill) is not Role.PREFILL:
            message = msgspec.structs.replace(message, prefill=None)
        if copy is not None and not self._is_other_owner(copy.source):
            message = msgspec.structs.replace(message, copy=None)
        return message

    def _is_other_owner(self, address: PeerAddress) -> bool:
        role = self._neighbours.try_find(address)
        owns_blocks = role is not None and (role is not Role.PREFILL or self._order.is_adaptive)
        return owns_blocks and address.node == self._order.node and address.worker_id != self._order.worker_id

    def _find_prompt_fault(self, token_ids: list[int], arrived_s: float) -> str | None:
        if arrived_s > self._clock.now_s() + CLOCK_SLACK_S:
            return "the request has not arrived yet"
        return self._find_token_fault(token_ids)

    def _find_token_fault(self, token_ids: list[int]) -> str | None:
        largest = max(token_ids, default=0)
        return f"token {largest} is not among the model's {self._vocab_size}" if largest >= self._vocab_size else None

    def _find_sampling_fault(self, sampling: SamplingParams) -> str | None:
        num_told = max(sampling.num_logprobs or 0, sampling.num_prompt_logprobs or 0)
        if num_told > self._vocab_size:
            return f"log-probabilities of {num_told} tokens are asked for, and the model has {self._vocab_size}"
        return None

    def _find_granter_fault(self, decode: PeerAddress) -> str | None:
        if self._prefill is None:
            return "this worker reads no prompts for others"
        if self._neighbours.try_find(decode) is None or decode.worker_id == self._order.worker_id:
            return f"{decode.worker_id} at {decode.endpoint!r} is no worker that grants blocks here"
        return None

    def _find_grant_fault(self, grant: Grant) -> str | None:
        num_prompt_tokens, num_cached_tokens = len(grant.prompt_token_ids), grant.num_cached_tokens
        num_mask_bytes = math.ceil(self._vocab_size / WORD_BITS) * MASK_WORD_BYTES
        if num_cached_tokens >= num_prompt_tokens:
            return f"{num_cached_tokens} of {num_prompt_tokens} tokens are cached already, which leaves none to read"
        if len(set(grant.choices)) != len(grant.choices) or len(grant.choices) > self._order.max_num_seqs:
            return f"{len(grant.choices)} choices, or one twice"
        if grant.first_token_mask is not None and len(grant.first_token_mask) != num_mask_bytes:
            return f"a mask of {len(grant.first_token_mask)} bytes for {self._vocab_size} tokens"
        if self._prefill is not None and self._prefill.has_grant(grant.epoch, grant.decode):
            return f"epoch {grant.epoch} is granted already"
        if len(grant.block_hashes) != num_prompt_tokens // self._memory.layout.block_size:
            return f"{len(grant.block_hashes)} names for the blocks of {num_prompt_tokens} tokens"
        return (
            self._find_router_fault(grant.router)
            or self._find_prompt_fault(grant.prompt_token_ids, grant.arrived_s)
            or self._find_sampling_fault(grant.sampling)
            or (self._find_far_fault(grant) if grant.decode.node != self._order.node else self._find_table_fault(grant))
        )

    def _find_table_fault(self, grant: Grant) -> str | None:
        """Check the table as a step would, and that the blocks are the granter's to give."""
        begin = grant.num_cached_tokens
        row = Row(grant.prompt_token_ids[begin:], begin, grant.block_table, 0)
        try:
            self._memory.check([StepPart(row, grant.request_id, grant.epoch)])
        except BlockTableError as error:
            return str(error)
        written = grant.block_table[begin // self._memory.layout.block_size :]
        if not self._memory.is_leased_to(grant.decode.worker_id, written):
            return f"blocks are granted that {grant.decode.worker_id} does not own"
        return None

    def _find_far_fault(self, grant: Grant) -> str | None:
        """Check what blocks of another machine are named. Whether they may be filled, their owner's receiver knows."""
        if self._prefill is None or self._prefill.remote is None or grant.transfer is None:
            return "this worker sends no KV to other machines"
        _, colon, port = grant.transfer.rpartition(":")
        if not colon or not port.isdecimal():
            return f"{grant.transfer!r} is no receiver's address"
        table, size = grant.block_table, self._block_size
        if len(table) * size < len(grant.prompt_token_ids) or len(set(table)) != len(table):
            return f"a table of {len(table)} blocks, or with one twice, for {len(grant.prompt_token_ids)} tokens"
        return None

    def _find_writers_fault(self, message: Filled | Pushed) -> str | None:
        if self._decode is None:
            return "this worker grants no blocks"
        handoff = self._decode.roster.grants.get(message.epoch)
        if handoff is None:
            return None  # an answer to an older grant, which is nobody's any more
        if handoff.sequence.request_id != message.request_id:
            return f"epoch {message.epoch} is that of another request than {message.request_id}"
        is_far = self._decode.roster.grants.far.is_far(handoff.writer)
        if isinstance(message, Pushed):
            return self._find_pushed_fault(message, handoff, is_far=is_far)
        if message.is_ahead and not is_far:
            return f"{handoff.writer.worker_id} is of this machine, where nothing is on its way"
        return self._find_first_tokens_fault(message, handoff)

    def _find_pushed_fault(self, message: Pushed, handoff: Handoff, *, is_far: bool) -> str | None:
        if not is_far:
            return f"{handoff.writer.worker_id} is of this machine, and pushes nothing"
        num_prompt_tokens, num_in_last = handoff.sequence.num_prompt_tokens, message.num_tokens % self._block_size
        if message.num_tokens > num_prompt_tokens or (num_in_last and message.num_tokens < num_prompt_tokens):
            return f"{message.num_tokens} tokens of a prompt of {num_prompt_tokens} do not fill blocks"
        return None

    def _find_first_tokens_fault(self, message: Filled, handoff: Handoff) -> str | None:
        sequence = handoff.sequence
        choices, sampling = sequence.choices_to_begin, sequence.request.sampling
        if len(message.first_tokens) != len(choices):
            return f"{len(message.first_tokens)} first tokens for {len(choices)} choices"
        if any(self._is_wrong(token, sampling) for token in message.first_tokens):
            return "a first token that the model does not have, or without what was to be told of it"
        wants_prompt_logprobs = bool(choices) and sampling.num_prompt_logprobs is not None
        num_told = None if message.prompt_logprobs is None else len(message.prompt_logprobs)
        if num_told != (sequence.num_prompt_tokens - 1 if wants_prompt_logprobs else None):
            return f"log-probabilities of {num_told} tokens of a prompt of {sequence.num_prompt_tokens}"
        return None

    def _is_wrong(self, token: SampledToken, sampling: SamplingParams) -> bool:
        has_logprobs = token.logprobs is not None
        return token.token_id >= self._vocab_size or has_logprobs != (sampling.num_logprobs is not None)

    def _find_gone_fault(self, gone: PeerGone) -> str | None:
        is_me = gone.worker_id == self._order.worker_id
        if is_me or not self._neighbours.may_have_been(gone.worker_id, gone.incarnation):
            return f"there was no life {gone.incarnation} of another worker {gone.worker_id}"
        return None
