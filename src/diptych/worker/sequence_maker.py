"""What becomes of a `Submit`: sequences, or the reason why there will be none."""

from typing import NamedTuple

from diptych.core.control import WorkerOrder
from diptych.core.messages import FailureKind, Submit
from diptych.core.request import Request
from diptych.engine.base import StepEngine
from diptych.worker.sampling.chooser import TokenChooser
from diptych.worker.sampling.guide import Guide
from diptych.worker.sequence import Sequence
from diptych.worker.sequence_blocks import SequenceBlocks


class Refusal(NamedTuple):
    """Why a request is not served here."""

    kind: FailureKind
    message: str


class SequenceMaker:
    """Makes the sequences of one worker, numbered in the order of their arrival."""

    def __init__(self, order: WorkerOrder, engine: StepEngine, blocks: SequenceBlocks, max_model_len: int) -> None:
        self._order = order
        self._engine = engine
        self._blocks = blocks
        self._max_model_len = max_model_len
        self._num_arrived = 0

    def make(self, submit: Submit) -> list[Sequence]:
        """Return what a request begins with: a sequence that stands for all its choices until the prompt has been read.

        Of a request that goes on after another worker's death, a sequence for each choice that goes on.
        """
        request, arrival = submit.request, self._num_arrived
        self._num_arrived += request.num_choices
        if submit.answers is None:
            head = self._sequence(submit, arrival, 0, [])
            head.num_due_choices = request.num_choices - 1
            return [head]
        return [self._sequence(submit, arrival + choice, choice, tokens) for choice, tokens in submit.answers.items()]

    def _sequence(self, submit: Submit, arrival: int, choice: int, answer: list[int]) -> Sequence:
        request = submit.request
        chooser = self._chooser(request, choice, None)
        for token_id in answer:
            chooser.on_token(token_id)
        return Sequence(
            request=request,
            attempt=submit.attempt,
            prefill=submit.prefill,
            arrival=arrival,
            token_ids=request.prompt_token_ids + answer,
            block_hashes=self._blocks.hash_prompt(request),
            chooser=chooser,
            former=submit.former,
            copy_order=submit.copy,
            router=submit.router,
            frontend=submit.frontend,
        )

    def why_not(self, request: Request) -> Refusal | None:
        """Return why this worker will never serve a request; None if it can."""
        num_prompt_tokens, order = len(request.prompt_token_ids), self._order
        if num_prompt_tokens >= self._max_model_len:
            text = f"a prompt of {num_prompt_tokens} tokens leaves no room for an answer in {self._max_model_len}"
            return Refusal(FailureKind.INVALID, text)
        if request.num_choices > order.max_num_seqs:
            text = f"{request.num_choices} answers to a request are more than the {order.max_num_seqs} that run"
            return Refusal(FailureKind.INVALID, f"{text} at a time (--max-num-seqs)")
        if self._most_tokens(request) > self._blocks.cache.num_blocks * self._blocks.block_size:
            return Refusal(FailureKind.REFUSED, f"{order.worker_id}'s blocks do not hold so long an answer")
        return None

    def _most_tokens(self, request: Request) -> int:
        """Return how long an answer may get, with its prompt. Its last token is never computed."""
        return min(len(request.prompt_token_ids) + request.sampling.max_tokens, self._max_model_len) - 1

    def choices(self, head: Sequence) -> list[Sequence]:
        """Return who goes on from here: a sequence and, its prompt having been read, the choices that it stood for."""
        guide = head.chooser.guide
        return [head] + [
            Sequence(
                request=head.request,
                attempt=head.attempt,
                prefill=head.prefill,
                arrival=head.arrival + choice,
                token_ids=list(head.request.prompt_token_ids),
                block_hashes=head.block_hashes[: head.num_prompt_tokens // self._blocks.block_size],
                chooser=self._chooser(head.request, choice, None if guide is None else guide.copy()),
                router=head.router,
                frontend=head.frontend,
                num_cached_tokens=head.num_cached_tokens,
                num_loaded_tokens=head.num_loaded_tokens,
                timeline=head.timeline.copy(),
            )
            for choice in range(1, head.num_places)
        ]

    def _chooser(self, request: Request, choice: int, guide: Guide | None) -> TokenChooser:
        return TokenChooser(
            request.sampling,
            choice=choice,
            prompt_token_ids=request.prompt_token_ids,
            eos_token_ids=self._engine.eos_token_ids,
            vocab_size=self._engine.vocab_size,
            guide=guide,
        )
