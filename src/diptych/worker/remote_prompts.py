"""Prompts of workers of other machines: read into blocks of this one, and pushed from there while the rest is read.

A grant from another machine names blocks that cannot be written here. Its prompt becomes a sequence in this worker's
own blocks (`GrantedPrompt.scratch`), which begins with what this worker's prefix cache has of it. What the owner has
more is fetched from there if that is predicted to be sooner than computing it. Blocks are pushed as they fill, those
alone that the owner does not have; what was read stays in the cache here.

    waiting  --room-->  fetching  -->  reading (in the role's queue)  --finish-->  pushing  --all landed-->  `Filled`
                  any of them  --end-->  ending  --nothing moves any more-->  `GrantEnded`

Where the last bytes go inline, `Filled` is also said ahead, beside them: the owner goes on as soon as its receiver has
them all, and not a round trip later (docs/adr/0039).

Invariants: `Pushed`, and `Filled` that is not said ahead, say only what the receiver has said has landed; blocks here
are not given up while a transfer touches them; whatever happens to a transfer, its grant is answered.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec

from diptych.core.control import WorkerOrder
from diptych.core.cost_model import CostModel
from diptych.core.ids import WorkerId
from diptych.core.messages import Filled, Grant, GrantEnded, Message, PeerAddress, Pushed
from diptych.core.request import Request
from diptych.policy.transferring import is_worth_fetching
from diptych.transfer.exchange import Exchange
from diptych.transfer.frames import MAX_PUSH_BLOCKS
from diptych.transfer.link import Transfer
from diptych.transfer.memory import BlockPair
from diptych.worker.granted_prompt import GrantedPrompt
from diptych.worker.load import Speed
from diptych.worker.sampling.chooser import TokenChooser
from diptych.worker.sequence import Sequence
from diptych.worker.sequence_blocks import SequenceBlocks

Tell = Callable[[PeerAddress, Message], None]


@dataclass(slots=True, eq=False)
class _Visit:
    """A grant of another machine, from its arrival to its answer."""

    prompt: GrantedPrompt
    scratch: Sequence
    endpoint: str
    """Of the owner's receiver."""
    next_index: int
    """Of the first block that has not been pushed."""
    has_room: bool = False
    is_reading: bool = False
    """Whether it has been given to the role."""
    transfers: deque[tuple[Transfer, int]] = field(default_factory=deque)
    """Under way, in order; and up to which token of the prompt there is KV at the other end of each."""
    fault: str | None = None
    """Why a push has failed."""
    answer: Filled | GrantEnded | None = None
    """What to say when nothing moves any more."""


class RemotePrompts:
    """All prompts that one worker reads for other machines. Owned by its loop."""

    def __init__(  # noqa: PLR0913, PLR0917  the parts that it is made of
        self,
        order: WorkerOrder,
        blocks: SequenceBlocks,
        exchange: Exchange,
        costs: CostModel,
        speed: Speed,
        tell: Tell,
    ) -> None:
        """`tell`: sends to a worker, if it is still there."""
        self._order = order
        self._blocks = blocks
        self._exchange = exchange
        self._costs = costs
        self._speed = speed
        self._tell = tell
        self._visits: list[_Visit] = []
        self._endpoints: dict[tuple[WorkerId, int], str] = {}
        """Where the receivers of those are that have granted something."""

    def is_remote(self, grant: Grant) -> bool:
        """Tell whether a grant comes from another machine."""
        return grant.decode.node != self._order.node

    def prompts(self) -> list[GrantedPrompt]:
        """Return those of which no answer is on its way."""
        return [visit.prompt for visit in self._visits if visit.answer is None]

    @property
    def unread(self) -> list[GrantedPrompt]:
        """Those that wait for room, or for what is fetched."""
        return [visit.prompt for visit in self._visits if visit.answer is None and not visit.is_reading]

    def add(self, grant: Grant, chooser: TokenChooser) -> None:
        """Take a grant in. It is answered in any case, sooner or later."""
        request = Request(
            request_id=grant.request_id,
            prompt_token_ids=grant.prompt_token_ids,
            sampling=grant.sampling,
            deadline_s=grant.deadline_s,
            arrived_s=grant.arrived_s,
        )
        tokens, hashes = list(grant.prompt_token_ids), list(grant.block_hashes)
        scratch = Sequence(request, grant.attempt, None, 0, tokens, hashes, chooser)
        prompt = GrantedPrompt(grant, 0, scratch=scratch)
        assert grant.transfer is not None
        self._endpoints[grant.decode.worker_id, grant.decode.incarnation] = grant.transfer
        visit = _Visit(prompt, scratch, grant.transfer, grant.num_cached_tokens // self._blocks.block_size)
        self._visits.append(visit)
        if len(tokens) // self._blocks.block_size + 1 > self._blocks.cache.num_blocks:
            self.end(prompt, f"{self._order.worker_id} has no room for a prompt of {len(tokens)} tokens")
        elif self._exchange.link(grant.transfer).is_unreachable:
            self.end(prompt, f"{self._order.worker_id} cannot reach {grant.transfer}")

    # Until it can be read

    def take_ready(self) -> list[GrantedPrompt]:
        """Give room to those that wait, first come, first served; return those that can be read now."""
        for visit in self._visits:
            if visit.answer is None and not visit.has_room:
                if not self._blocks.try_reserve(visit.scratch, num_spare_blocks=0):
                    break
                visit.has_room = True
                self._try_fetch(visit)
        ready = [one for one in self._visits if one.has_room and not one.is_reading and not one.transfers]
        ready = [one for one in ready if one.answer is None]
        for visit in ready:
            visit.is_reading = True
            visit.prompt.num_computed_tokens = visit.scratch.num_computed_tokens
            self._push(visit)
        return [visit.prompt for visit in ready]

    def _try_fetch(self, visit: _Visit) -> None:
        """Have the owner send what it has more of a prompt, if that is sooner than computing it."""
        grant, scratch, size = visit.prompt.grant, visit.scratch, self._blocks.block_size
        first = scratch.num_computed_tokens // size
        last = self._blocks.most_reusable(scratch, grant.num_cached_tokens // size)
        if last <= first:
            return
        link = self._exchange.link(visit.endpoint)
        num_tokens = (last - first) * size
        compute_s = self._costs.prefill_s(num_tokens, scratch.num_computed_tokens, self._order.chunk_tokens)
        num_bytes = (last - first) * self._blocks.block_bytes
        if not is_worth_fetching(num_bytes, link.byte_s, compute_s * self._speed.cost_scale):
            return
        for pairs, end in self._orders(visit, first, last):
            visit.transfers.append((link.fetch(grant.epoch, pairs), end * size))

    # While it is being read

    def on_computed(self, prompt: GrantedPrompt, num_tokens: int) -> None:
        """Note that a step has computed the next `num_tokens` of a prompt; push what is full now."""
        visit = self._visit_of(prompt)
        self._blocks.on_computed([(visit.scratch, num_tokens)])
        self._push(visit)

    def _push(self, visit: _Visit) -> None:
        """Push the blocks that are full, and with the prompt's last token also the last one."""
        num_computed, size = visit.scratch.num_computed_tokens, self._blocks.block_size
        is_read = num_computed == visit.scratch.num_prompt_tokens
        last = -(-num_computed // size) if is_read else num_computed // size
        if last <= visit.next_index:
            return
        link = self._exchange.link(visit.endpoint)
        for pairs, end in self._orders(visit, visit.next_index, last):
            transfer = link.push(visit.prompt.grant.epoch, pairs)
            visit.transfers.append((transfer, min(end * size, num_computed)))
        visit.next_index = last

    def _orders(self, visit: _Visit, first: int, last: int) -> Iterator[tuple[list[BlockPair], int]]:
        """Yield blocks of the prompt from `first` to before `last`, here and there, in orders; and where each ends."""
        tables = list(zip(visit.scratch.block_table, visit.prompt.grant.block_table, strict=False))
        for begin in range(first, last, MAX_PUSH_BLOCKS):
            end = min(begin + MAX_PUSH_BLOCKS, last)
            yield [BlockPair(here, there) for here, there in tables[begin:end]], end

    # Its end

    def finish(self, prompt: GrantedPrompt, filled: Filled) -> None:
        """Say `filled` when all blocks have landed: the whole prompt has been read. Say it ahead where that is safe."""
        visit = self._visit_of(prompt)
        visit.answer = filled
        if visit.transfers and visit.fault is None and self._exchange.link(visit.endpoint).is_inline:
            self._tell(prompt.grant.decode, msgspec.structs.replace(filled, is_ahead=True))

    def end(self, prompt: GrantedPrompt, reason: str) -> None:
        """Give a grant back as soon as nothing moves any more."""
        grant = prompt.grant
        visit = self._visit_of(prompt)
        visit.answer = GrantEnded(request_id=grant.request_id, epoch=grant.epoch, reason=reason)
        for transfer, _ in visit.transfers:
            transfer.cancel()
        self.on_turn()

    def end_where(self, is_ended: Callable[[Grant], bool], reason: str) -> None:
        """Give back those grants, whether they are being read or have been."""
        for visit in list(self._visits):
            if is_ended(visit.prompt.grant) and not isinstance(visit.answer, GrantEnded):
                self.end(visit.prompt, reason)

    def has(self, epoch: int, decode: PeerAddress) -> bool:
        """Tell whether this grant is here and has not been answered."""
        return any(one.prompt.grant.epoch == epoch and one.prompt.grant.decode == decode for one in self._visits)

    def take_faults(self) -> list[tuple[GrantedPrompt, str]]:
        """Return the prompts of which a push has failed, and why: the role is to give them back."""
        return [(one.prompt, one.fault) for one in self._visits if one.fault and not isinstance(one.answer, GrantEnded)]

    def on_gone(self, worker_id: WorkerId, incarnation: int) -> None:
        """End what is read for that life of a worker, or one before it, and the link to it."""
        self.end_where(lambda g: g.decode.worker_id == worker_id and g.decode.incarnation <= incarnation, "it is gone")
        for life in [life for life in self._endpoints if life[0] == worker_id and life[1] <= incarnation]:
            self._exchange.forget(self._endpoints.pop(life))

    def on_turn(self) -> None:
        """See what has landed, and answer where nothing moves any more. Called often, also while a step is running."""
        for visit in list(self._visits):
            self._take_landed(visit)
            is_safe = not visit.transfers and (visit.fault is None or isinstance(visit.answer, GrantEnded))
            if visit.answer is not None and is_safe:
                self._visits.remove(visit)
                self._blocks.release(visit.scratch)
                self._tell(visit.prompt.grant.decode, visit.answer)

    def _take_landed(self, visit: _Visit) -> None:
        grant = visit.prompt.grant
        while visit.transfers and visit.transfers[0][0].is_over:
            transfer, num_tokens = visit.transfers.popleft()
            if transfer.is_fetch:
                self._take_fetched(visit, transfer, num_tokens)
            elif transfer.error is not None:
                visit.fault = visit.fault or transfer.error
            elif visit.fault is None and visit.answer is None:
                pushed = Pushed(request_id=grant.request_id, epoch=grant.epoch, num_tokens=num_tokens)
                self._tell(grant.decode, pushed)

    def _take_fetched(self, visit: _Visit, transfer: Transfer, num_tokens: int) -> None:
        """Use what was fetched, if all before it is there; what is missing is computed."""
        num_missing = num_tokens - visit.scratch.num_computed_tokens
        if transfer.error is None and num_missing == len(transfer.pairs) * self._blocks.block_size:
            self._blocks.on_fetched(visit.scratch, num_missing)

    def _visit_of(self, prompt: GrantedPrompt) -> _Visit:
        (visit,) = [one for one in self._visits if one.prompt is prompt]
        return visit
