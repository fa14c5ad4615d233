"""The prefill role: reads prompts into blocks that belong to others.

It owns no block and keeps no KV. A grant names the blocks; the worker computes the uncached part of the prompt into
them, chunk by chunk, samples the first token, tells the router (that is TTFT) and the decode worker. Its death loses
nothing but time.
"""

from collections.abc import Callable
from dataclasses import dataclass

from diptych.core.clock import Clock
from diptych.core.control import WorkerOrder
from diptych.core.errors import BlockTableError, EngineError, PeerUnreachableError
from diptych.core.messages import (
    Filled,
    Grant,
    GrantEnded,
    Message,
    PeerGone,
    Revoke,
    TokenEvent,
    Tokens,
    ToWorker,
)
from diptych.engine.base import Logits, Row
from diptych.policy.batching import plan_chunks
from diptych.wire.mailbox import Outbox
from diptych.worker.load import Load, Speed
from diptych.worker.memory import StepPart, WorkerMemory
from diptych.worker.sampler import sample


@dataclass(slots=True, eq=False)
class GrantedPrompt:
    """A grant and how far it has been filled."""

    grant: Grant
    num_computed_tokens: int
    started_s: float = 0.0

    @property
    def num_remaining_tokens(self) -> int:
        """Prompt tokens not computed yet."""
        return len(self.grant.prompt_token_ids) - self.num_computed_tokens


class PrefillRole:
    """Serves grants first come, first served. The queue is bounded by the sequences that decode workers may hold."""

    def __init__(self, order: WorkerOrder, memory: WorkerMemory, outbox: Outbox, clock: Clock, speed: Speed) -> None:
        self._order = order
        self._memory = memory
        self._outbox = outbox
        self._clock = clock
        self._speed = speed
        self._queue: list[GrantedPrompt] = []
        self._batch: list[tuple[GrantedPrompt, int]] = []  # of the running step: who, and how many tokens
        self._in_step: list[Revoke | PeerGone] = []  # came during the running step, which writes into the blocks

    def load(self) -> Load:
        """Return what is running and queued."""
        num_tokens = sum(prompt.num_remaining_tokens for prompt in self._queue)
        return Load(len(self._batch), len(self._queue) - len(self._batch), num_tokens)

    def on_message(self, message: ToWorker) -> None:
        """Take up a grant, or give one back. Messages for decode workers mean nothing here and are passed over."""
        match message:
            case Grant():
                self._queue.append(GrantedPrompt(message, message.num_cached_tokens))
            case Revoke() | PeerGone() if self._batch:
                self._in_step.append(message)
            case Revoke(request_id=request_id, epoch=epoch, decode=decode):
                self._drop_where(lambda grant: grant.epoch == epoch and grant.decode == decode)
                # Answered even if the grant is unknown: that nothing is written for this epoch is what is asked.
                self._send(decode.endpoint, GrantEnded(request_id=request_id, epoch=epoch, reason="revoked"))
            case PeerGone(worker_id=worker_id, incarnation=incarnation):
                self._drop_where(lambda g: g.decode.worker_id == worker_id and g.decode.incarnation <= incarnation)
            case _:
                pass

    def plan_step(self) -> list[StepPart]:
        """Choose the next chunk, or several short prompts at once; called when no step is running."""
        now_s = self._clock.now_s()
        for prompt in [prompt for prompt in self._queue if prompt.grant.deadline_s < now_s]:
            self._give_back(prompt, "the request's deadline passed in the prefill queue")
        chunks = plan_chunks([prompt.num_remaining_tokens for prompt in self._queue], self._order.chunk_tokens)
        self._batch = list(zip(self._queue, chunks, strict=False))
        for prompt, _ in self._batch:
            prompt.started_s = prompt.started_s or now_s
        return [_part(prompt, num_tokens) for prompt, num_tokens in self._batch]

    def on_step_done(self, outcome: Logits | EngineError, duration_s: float) -> None:
        """Take the result of the step planned last: nothing is being written now."""
        batch, self._batch = self._batch, []
        if isinstance(outcome, BlockTableError):
            self._give_back_void([prompt for prompt, _ in batch])
        elif isinstance(outcome, EngineError):
            for prompt, _ in batch:
                self._give_back(prompt, str(outcome))
        else:
            self._speed.on_step(sum(num_tokens for _, num_tokens in batch), 0, duration_s)
            for prompt, num_tokens in batch:
                prompt.num_computed_tokens += num_tokens
            self._hand_over([prompt for prompt, _ in batch if prompt.num_remaining_tokens == 0], outcome)
        messages, self._in_step = self._in_step, []
        for message in messages:
            self.on_message(message)

    def _hand_over(self, filled: list[GrantedPrompt], logits: Logits) -> None:
        """Sample the first tokens and tell them to the router, then to the decode workers that go on from there."""
        if not filled:
            return
        try:
            first_tokens = sample(logits, [(prompt.grant.sampling, 0) for prompt in filled])
        except EngineError as error:
            for prompt in filled:
                self._give_back(prompt, str(error))
            return
        first_token_s = self._clock.now_s()
        events = [
            TokenEvent(prompt.grant.request_id, prompt.grant.attempt, 0, token_id)
            for prompt, token_id in zip(filled, first_tokens, strict=True)
        ]
        order = self._order
        self._send(
            order.router_endpoint, Tokens(worker_id=order.worker_id, incarnation=order.incarnation, tokens=events)
        )
        for prompt, token_id in zip(filled, first_tokens, strict=True):
            self._queue.remove(prompt)
            self._send(prompt.grant.decode.endpoint, self._filled(prompt, token_id, first_token_s))

    def _filled(self, prompt: GrantedPrompt, first_token: int, first_token_s: float) -> Filled:
        grant = prompt.grant
        return Filled(
            request_id=grant.request_id,
            epoch=grant.epoch,
            first_token=first_token,
            prefill_started_s=prompt.started_s,
            first_token_s=first_token_s,
            kv_checksum=self._memory.checksum_written(
                grant.block_table, grant.num_cached_tokens, len(grant.prompt_token_ids)
            )
            if self._order.has_kv_checksums
            else None,
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
            self._memory.check([_part(prompt, prompt.num_remaining_tokens)])
        except BlockTableError as error:
            return error
        return None

    def _give_back(self, prompt: GrantedPrompt, reason: str) -> None:
        self._queue.remove(prompt)
        grant = prompt.grant
        self._send(grant.decode.endpoint, GrantEnded(request_id=grant.request_id, epoch=grant.epoch, reason=reason))

    def _drop_where(self, is_dropped: Callable[[Grant], bool]) -> None:
        self._queue = [prompt for prompt in self._queue if not is_dropped(prompt.grant)]

    def _send(self, endpoint: str, message: Message) -> None:
        try:
            self._outbox.send(endpoint, message)
        except PeerUnreachableError:
            # A peer that has not read 10,000 messages is hung; the launcher finds that out and PeerGone follows.
            return


def _part(prompt: GrantedPrompt, num_tokens: int) -> StepPart:
    grant = prompt.grant
    begin = prompt.num_computed_tokens
    is_last = num_tokens == prompt.num_remaining_tokens
    row = Row(grant.prompt_token_ids[begin : begin + num_tokens], begin, grant.block_table, is_last)
    return StepPart(row, grant.request_id, grant.epoch)
