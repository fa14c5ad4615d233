"""One accepted request between its first `Submit` and its end, and what is left of it afterwards.

    SERVING --Finished, tokens missing--> END_HELD --the last token--> closed
    SERVING --refused, worker died--> SERVING by another worker, or HOMELESS --a worker is ready--> SERVING
    END_HELD --too late--> likewise
    SERVING --client left, or deadline--> ABORTING --Aborted, any end, worker died, or too late--> closed
    SERVING, HOMELESS --Finished, Failed, too late, or no attempt left--> closed

The outcome is decided once, when the request leaves for ABORTING or is closed; what comes later only adds figures.
"""

from dataclasses import dataclass, field
from enum import Enum, auto

from diptych.core.events import UNFINISHED, Lifecycle, RequestRecord, Timeline
from diptych.core.ids import NO_NODE, BlockHash, NodeId, RequestId
from diptych.core.messages import Aborted, Failed, Finished, FormerAttempt, PeerAddress
from diptych.core.request import Request
from diptych.router.answer import Answer
from diptych.router.placement import Placement
from diptych.router.registry import WorkerLife


class Phase(Enum):
    """What the router waits for."""

    HOMELESS = auto()
    """A worker that takes it. No worker has anything of it."""
    SERVING = auto()
    """Tokens, or an end."""
    END_HELD = auto()
    """Tokens that come before the end, which is here already; the decode worker has nothing more to say."""
    ABORTING = auto()
    """The decode worker's word that the request holds nothing any more. The client has its outcome."""


@dataclass(slots=True, eq=False)
class InFlight:
    """Compared by identity. `give_up_s` is when the phase ends by itself, on the node's clock."""

    request: Request
    prompt_hashes: list[BlockHash]
    answer: Answer
    last_moment_s: float
    """When all waiting for its answer ends."""
    give_up_s: float
    placement: Placement | None = None
    """Of the present attempt, or of the last one while it is homeless; None before the first."""
    attempt: int = 0
    phase: Phase = Phase.HOMELESS
    outcome: str | None = None
    """`stop`, `length`, `aborted` or `failed`; None while it is open."""
    refused_by: set[PeerAddress] = field(default_factory=set)
    num_refusals: int = 0
    num_migrations: int = 0
    num_deaths: int = 0
    """Of those migrations, how many nobody had asked for."""
    former: FormerAttempt | None = None
    """The last attempt whose worker died."""
    former_node: NodeId = NO_NODE
    """The machine that had it."""
    setback: str = ""
    """What the last attempt came to."""
    routed_s: float = 0.0
    migrated_s: float | None = None
    prefill_started_s: float | None = None
    """As the worker that reads its prompt has told."""
    first_token_s: float | None = None
    """When the router got the first token of any choice."""
    second_token_s: float | None = None
    """When it got the next one: until then the answer was on its way to the batch of its decode worker."""
    token_s: dict[int, float] = field(default_factory=dict)
    """When the router got the last token of each choice; only where somebody counts the gaps."""
    open_choices: set[int] = field(default_factory=set)
    """Those that may hold something on the decode worker: it has not told their ends."""
    num_output_tokens: int = 0
    """Of the choices whose ends it, or one before it, has told."""
    last_end: Finished | Aborted | None = None
    """What it told last."""

    def open(self) -> None:
        """Begin an attempt: the worker has all choices that have not ended."""
        self.phase = Phase.SERVING
        self.open_choices = set(self.answer.open_answers())

    def lose_home(self) -> None:
        """End an attempt without an outcome: no worker has anything of it any more."""
        if self.placement is not None:
            self.placement.release(self.request_id)
        self.phase = Phase.HOMELESS
        self.answer.restart()
        self.open_choices.clear()
        self.last_end = None
        num_open_tokens = sum(len(token_ids) for token_ids in self.answer.open_answers().values())
        self.num_output_tokens = self.answer.num_in_order - num_open_tokens

    @property
    def owner(self) -> WorkerLife | None:
        """The worker that writes the answer now; None while it is homeless."""
        return None if self.placement is None or self.phase is Phase.HOMELESS else self.placement.decode

    @property
    def begun_answers(self) -> dict[int, list[int]] | None:
        """The tokens of each choice that is to go on; None if all are and none has begun."""
        answers = self.answer.open_answers()
        has_begun = any(answers.values()) or len(answers) < self.request.num_choices
        return answers if has_begun else None

    @property
    def request_id(self) -> RequestId:
        """The request's id."""
        return self.request.request_id

    def close_choice(self, end: Finished | Aborted) -> None:
        """Take the decode worker's last word on a choice, or on all of them."""
        closed = self.open_choices & ({end.choice} if end.choice is not None else self.open_choices)
        self.open_choices -= closed
        if closed:
            self.num_output_tokens += end.num_output_tokens
            self.last_end = end

    def to_unfinished_record(self) -> RequestRecord:
        """Return how far the request has come, with times as the router has heard of them."""
        placement = self.placement
        prefill = None if placement is None else placement.prefill
        moments = {
            Lifecycle.ARRIVED: self.request.arrived_s,
            Lifecycle.ROUTED: self.routed_s or None,
            Lifecycle.PREFILL_STARTED: self.prefill_started_s,
            Lifecycle.FIRST_TOKEN: self.first_token_s,
            Lifecycle.JOINED: self.second_token_s,
            Lifecycle.MIGRATED: self.migrated_s,
        }
        return RequestRecord(
            request_id=self.request_id,
            outcome=UNFINISHED if self.outcome is None else self.outcome,
            decode_worker="" if placement is None else placement.decode.worker_id,
            prefill_worker=None if prefill is None else prefill.worker_id,
            num_prompt_tokens=len(self.request.prompt_token_ids),
            num_cached_tokens=self.answer.num_cached_tokens,
            num_output_tokens=self.answer.num_in_order,
            num_preemptions=0,
            timeline={event: moment_s for event, moment_s in moments.items() if moment_s is not None},
            num_loaded_tokens=self.answer.num_loaded_tokens,
            num_migrations=self.num_migrations,
            num_choices=self.request.num_choices,
        )

    def to_record(self, failed: Failed | None, now_s: float) -> RequestRecord:
        """Return what is left at the end; `failed` is the worker's last word, if that was it."""
        if self.outcome is None:
            raise AssertionError(f"{self.request_id} has not ended")
        end = failed or self.last_end
        timeline: Timeline = dict(end.timeline) if end is not None else {}
        timeline[Lifecycle.ARRIVED] = self.request.arrived_s
        timeline[Lifecycle.ROUTED] = self.routed_s
        timeline.setdefault(Lifecycle.FINISHED, now_s)
        if self.migrated_s is not None:
            timeline[Lifecycle.MIGRATED] = self.migrated_s
            if self.first_token_s is not None:  # the last worker knows only when it went on
                timeline[Lifecycle.FIRST_TOKEN] = self.first_token_s
        placement = self.placement
        prefill = None if placement is None else placement.prefill
        finished = end if isinstance(end, Finished) else None
        return RequestRecord(
            request_id=self.request_id,
            outcome=self.outcome,
            decode_worker="" if placement is None else placement.decode.worker_id,
            prefill_worker=None if prefill is None else prefill.worker_id,
            num_prompt_tokens=len(self.request.prompt_token_ids),
            num_cached_tokens=self.answer.num_cached_tokens,
            num_output_tokens=self.answer.num_in_order if self.open_choices else self.num_output_tokens,
            num_preemptions=0 if finished is None else finished.num_preemptions,
            timeline=timeline,
            num_loaded_tokens=self.answer.num_loaded_tokens,
            num_migrations=self.num_migrations,
            num_choices=self.request.num_choices,
            traceparent=self.request.traceparent,
        )
