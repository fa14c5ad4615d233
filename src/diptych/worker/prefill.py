"""The prefill role: reads prompts into blocks that belong to others.

It owns no block and keeps no KV. A grant names the blocks; the worker computes the uncached part of the prompt into
them, chunk by chunk, samples the first token, tells the router (that is TTFT) and the decode worker. After each chunk
the header says how far it is, so its death, or the owner's, loses nothing but time, and not much of it.

Blocks of another machine are not to be written here. Prompts for those are read into blocks of this worker's own, and
pushed (remote_prompts.py): here they wait in the same queue, and are parts of the same steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from diptych.core.clock import Clock
from diptych.core.control import WorkerOrder
from diptych.core.cost_model import count_pairs
from diptych.core.errors import BlockTableError, EngineError, PeerUnreachableError
from diptych.core.ids import RouterId, WorkerId
from diptych.core.messages import (
    Begun,
    Filled,
    Grant,
    GrantEnded,
    GrantHeld,
    Message,
    PeerAddress,
    PeerGone,
    Remind,
    Revoke,
    Started,
    TokenEvent,
    Tokens,
    ToWorker,
)
from diptych.core.request import SampledToken
from diptych.engine.base import Logits, StepEngine
from diptych.wire.mailbox import Outbox
from diptych.worker.granted_prompt import GrantedPrompt
from diptych.worker.load import Load
from diptych.worker.memory import StepPart, WorkerMemory
from diptych.worker.pace import Pace, Unread
from diptych.worker.remote_prompts import RemotePrompts
from diptych.worker.sampling.chooser import TokenChooser, choose_tokens
from diptych.worker.sampling.guide import FirstTokenGuide
from diptych.worker.sampling.logprobs import chunk_logprobs


@dataclass(slots=True)
class _Read:
    """A prompt whose last chunk has been computed: its first tokens, one for each choice."""

    prompt: GrantedPrompt
    first_tokens: list[SampledToken]


class PrefillRole:
    """Serves grants first come, first served. The queue is bounded by the sequences that decode workers may hold."""

    def __init__(  # noqa: PLR0913, PLR0917  the parts that it is made of
        self, order: WorkerOrder, engine: StepEngine, memory: WorkerMemory, outbox: Outbox, clock: Clock, pace: Pace
    ) -> None:
        self._order = order
        self._engine = engine
        self._memory = memory
        self._outbox = outbox
        self._clock = clock
        self._pace = pace
        self.remote: RemotePrompts | None = None
        """Prompts of other machines; None: this worker has to do with none. They are in the queue once they can be
        read."""
        self._queue: list[GrantedPrompt] = []
        self._batch: list[tuple[GrantedPrompt, int]] = []  # of the running step: who, and how many tokens
        self._begun: dict[RouterId, list[Begun]] = {}  # in the running step
        self._gone: dict[WorkerId, int] = {}
        self._in_step: list[Revoke | PeerGone] = []  # came during the running step, which writes into the blocks

    def load(self) -> Load:
        """Return what is running and queued."""
        unread = self._queue + ([] if self.remote is None else self.remote.unread)
        num_tokens = sum(prompt.num_remaining_tokens for prompt in unread)
        num_pairs = sum(count_pairs(one.num_remaining_tokens, one.num_computed_tokens) for one in unread)
        return Load(len(self._batch), len(unread) - len(self._batch), num_tokens, num_pairs)

    def has_grant(self, epoch: int, decode: PeerAddress) -> bool:
        """Tell whether this grant is here and has not been answered."""
        if self.remote is not None and self.remote.has(epoch, decode):
            return True
        return any(prompt.grant.epoch == epoch and prompt.grant.decode == decode for prompt in self._queue)

    def on_turn(self) -> None:
        """Answer the grants whose blocks have all arrived where they belong. Also called while a step runs."""
        if self.remote is not None:
            self.remote.on_turn()

    def on_message(self, message: ToWorker) -> None:
        """Take up a grant, or give one back. Messages for decode workers mean nothing here and are passed over."""
        if isinstance(message, PeerGone) and message.is_reaped:
            newest = self._gone.get(message.worker_id, message.incarnation)
            self._gone[message.worker_id] = max(message.incarnation, newest)
        match message:
            case Grant():
                self._on_grant(message)
            case Remind(request_id=request_id, epoch=epoch, decode=decode):
                if self.has_grant(epoch, decode):
                    self.tell(decode, GrantHeld(request_id=request_id, epoch=epoch))
                else:
                    self.tell(decode, GrantEnded(request_id=request_id, epoch=epoch, reason="it is unknown there"))
            case Revoke() | PeerGone() if self._batch:
                self._in_step.append(message)
            case Revoke(request_id=request_id, epoch=epoch, decode=decode):
                self._drop_where(lambda grant: grant.epoch == epoch and grant.decode == decode)
                # Answered even if the grant is unknown: that nothing is written for this epoch is what is asked.
                if not self.has_grant(epoch, decode):
                    self.tell(decode, GrantEnded(request_id=request_id, epoch=epoch, reason="revoked"))
            case PeerGone(worker_id=worker_id, incarnation=incarnation):
                self._drop_where(lambda g: g.decode.worker_id == worker_id and g.decode.incarnation <= incarnation)
                if self.remote is not None:
                    self.remote.on_gone(worker_id, incarnation)
            case _:
                pass

    def _on_grant(self, grant: Grant) -> None:
        # One may be overtaken by the news of its sender's death: its blocks are somebody else's by now.
        if self._is_gone(grant.decode):
            return
        if self.remote is not None and self.remote.is_remote(grant):
            self.remote.add(grant, self._chooser(grant, grant.choices[0] if grant.choices else 0))
        else:
            self._queue.append(GrantedPrompt(grant, grant.num_cached_tokens))

    def plan_step(self) -> list[StepPart]:
        """Choose the next chunk, or several short prompts at once; called when no step is running."""
        return self.take_up(self._pace.chunks([], self.find_work()))

    def find_work(self) -> list[Unread]:
        """Return the prompts to read, in order."""
        now_s = self._clock.now_s()
        prompts = [prompt for prompt in self._queue if prompt.scratch is None]
        if self.remote is not None:
            for prompt, reason in self.remote.take_faults():
                self._give_back(prompt, reason)
            self._queue += self.remote.take_ready()
            prompts += self.remote.prompts()
        for prompt in [prompt for prompt in prompts if prompt.grant.deadline_s < now_s]:
            self._give_back(prompt, "the request's deadline passed in the prefill queue")
        since_s = accumulate((one.grant.arrived_s for one in self._queue), max)
        return [
            Unread(since, one.num_remaining_tokens, one.num_computed_tokens)
            for one, since in zip(self._queue, since_s, strict=True)
        ]

    def take_up(self, chunks: Sequence[int]) -> list[StepPart]:
        """Make a step of chunks of the first prompts, as `find_work` has returned them."""
        now_s = self._clock.now_s()
        self._batch = list(zip(self._queue, chunks, strict=False))
        for prompt, _ in self._batch:
            if not prompt.started_s:
                prompt.started_s = now_s
                self._begun.setdefault(prompt.grant.router, []).append(_begun(prompt))
        return [prompt.part(num_tokens) for prompt, num_tokens in self._batch]

    def prepare_sampling(self) -> None:
        """Use the time of the running step to tell who is in one for the first time.

        Nothing is to be prepared: what the first tokens' grammars let through came with the grants.
        """
        begun, self._begun = self._begun, {}
        order = self._order
        for router, prompts in begun.items():
            message = Tokens(worker_id=order.worker_id, incarnation=order.incarnation, begun=prompts)
            self._send(order.routers[router], message)

    def on_step_done(self, outcome: Logits | EngineError) -> None:
        """Take the result of the step planned last: nothing is being written now."""
        batch, self._batch = self._batch, []
        if isinstance(outcome, BlockTableError):
            self._give_back_void([prompt for prompt, _ in batch])
        elif isinstance(outcome, EngineError):
            for prompt, _ in batch:
                if outcome.concerns(prompt.grant.request_id, prompt.epoch):
                    self._give_back(prompt, str(outcome))
        else:
            self._hand_over(self._sample(batch, outcome))
        messages, self._in_step = self._in_step, []
        for message in messages:
            self.on_message(message)

    def _sample(self, batch: Sequence[tuple[GrantedPrompt, int]], logits: Logits) -> list[_Read]:
        """Note what a step has computed; return the prompts that are read now. Those without a token are given back."""
        filled: list[tuple[GrantedPrompt, int]] = []
        row = 0
        for prompt, num_tokens in batch:
            num_logits, begin = prompt.part(num_tokens).row.num_logits, prompt.num_computed_tokens
            num_top = prompt.num_prompt_logprobs
            if num_top is not None:
                rows = logits[row : row + num_logits]
                prompt.prompt_logprobs += chunk_logprobs(rows, prompt.grant.prompt_token_ids, begin, num_top)
            row += num_logits
            error = self._try_commit(prompt, num_tokens)
            if error is not None:
                self._give_back(prompt, str(error))
                continue
            prompt.num_computed_tokens += num_tokens
            if prompt.num_remaining_tokens == 0:
                filled.append((prompt, row - 1))
        wanted = [
            (row, self._chooser(prompt.grant, choice)) for prompt, row in filled for choice in prompt.grant.choices
        ]
        tokens = iter(choose_tokens(logits, wanted))
        read: list[_Read] = []
        for prompt, _ in filled:
            results = [next(tokens) for _ in prompt.grant.choices]
            first_tokens = [result for result in results if isinstance(result, SampledToken)]
            if len(first_tokens) == len(results):
                read.append(_Read(prompt, first_tokens))
            else:  # the decode worker will meet the same error, and tell the client
                self._give_back(prompt, next(str(result) for result in results if isinstance(result, EngineError)))
        return read

    def _try_commit(self, prompt: GrantedPrompt, num_tokens: int) -> EngineError | None:
        """Write down what a step has computed; return why that cannot be: the blocks were taken away meanwhile."""
        if prompt.scratch is not None and self.remote is not None:
            self.remote.on_computed(prompt, num_tokens)
            return None
        try:
            self._memory.header.commit(prompt.commits(num_tokens, self._memory.layout.block_size))
        except EngineError as error:
            return error
        return None

    def _chooser(self, grant: Grant, choice: int) -> TokenChooser:
        return TokenChooser(
            grant.sampling,
            choice=choice,
            prompt_token_ids=grant.prompt_token_ids,
            eos_token_ids=self._engine.eos_token_ids,
            vocab_size=self._engine.vocab_size,
            guide=None if grant.first_token_mask is None else FirstTokenGuide(grant.first_token_mask),
        )

    def _hand_over(self, read: Sequence[_Read]) -> None:
        """Tell the first tokens to the routers that asked, then to the decode workers that go on from there."""
        first_token_s = self._clock.now_s()
        order = self._order
        told: dict[RouterId, list[_Read]] = {}
        for one in read:
            if one.first_tokens:
                told.setdefault(one.prompt.grant.router, []).append(one)
        for router, begun in told.items():
            message = Tokens(
                worker_id=order.worker_id,
                incarnation=order.incarnation,
                started=[_started(one.prompt) for one in begun],
                tokens=[event for one in begun for event in _events(one)],
            )
            self._send(order.routers[router], message)
        for one in read:
            self._queue.remove(one.prompt)
            filled = self._filled(one, first_token_s)
            if one.prompt.scratch is not None and self.remote is not None:
                self.remote.finish(one.prompt, filled)
            else:
                self.tell(one.prompt.grant.decode, filled)

    def _filled(self, read: _Read, first_token_s: float) -> Filled:
        grant = read.prompt.grant
        return Filled(
            request_id=grant.request_id,
            epoch=grant.epoch,
            first_tokens=read.first_tokens,
            prompt_logprobs=read.prompt.told_prompt_logprobs,
            prefill_started_s=read.prompt.started_s,
            first_token_s=first_token_s,
        )

    def _give_back_void(self, batch: list[GrantedPrompt]) -> None:
        """Find the grants whose blocks are no longer theirs, and give back those alone; all, if only together they err.

        One grant at least is given back: otherwise the same step would be tried forever.
        """
        errors = {prompt: error for prompt in batch if (error := self._try_find_error(prompt)) is not None}
        for prompt in batch:
            if prompt in errors or not errors:
                self._give_back(prompt, str(errors.get(prompt, "its blocks were granted twice")))

    def _try_find_error(self, prompt: GrantedPrompt) -> BlockTableError | None:
        try:
            self._memory.check([prompt.part(prompt.num_remaining_tokens)])
        except BlockTableError as error:
            return error
        return None

    def _give_back(self, prompt: GrantedPrompt, reason: str) -> None:
        if prompt in self._queue:  # else it waits for room, or for its blocks to arrive
            self._queue.remove(prompt)
        if prompt.scratch is not None and self.remote is not None:
            self.remote.end(prompt, reason)
            return
        grant = prompt.grant
        self.tell(grant.decode, GrantEnded(request_id=grant.request_id, epoch=grant.epoch, reason=reason))

    def _drop_where(self, is_dropped: Callable[[Grant], bool]) -> None:
        self._queue = [prompt for prompt in self._queue if not is_dropped(prompt.grant)]
        if self.remote is not None:
            self.remote.end_where(is_dropped, "revoked")

    def _is_gone(self, peer: PeerAddress) -> bool:
        return peer.incarnation <= self._gone.get(peer.worker_id, -1)

    def tell(self, decode: PeerAddress, message: Message) -> None:
        """Answer for a grant, if anyone is there to hear it."""
        if not self._is_gone(decode):
            self._send(decode.endpoint, message)

    def _send(self, endpoint: str, message: Message) -> None:
        try:
            self._outbox.send(endpoint, message)
        except PeerUnreachableError:
            # A peer that has not read 10,000 messages is hung; the launcher finds that out and PeerGone follows.
            return


def _begun(prompt: GrantedPrompt) -> Begun:
    grant = prompt.grant
    return Begun(request_id=grant.request_id, attempt=grant.attempt, prefill_started_s=prompt.started_s)


def _started(prompt: GrantedPrompt) -> Started:
    grant = prompt.grant
    return Started(
        request_id=grant.request_id,
        attempt=grant.attempt,
        num_cached_tokens=grant.num_cached_tokens,
        num_loaded_tokens=grant.num_loaded_tokens,
        prompt_logprobs=prompt.told_prompt_logprobs,
    )


def _events(read: _Read) -> list[TokenEvent]:
    grant = read.prompt.grant
    return [
        TokenEvent(grant.request_id, grant.attempt, 0, token.token_id, choice, token.logprobs)
        for choice, token in zip(grant.choices, read.first_tokens, strict=True)
    ]
