"""One accepted request between its first `Submit` and its end, and what is left of it afterwards.

    SERVING --Finished, tokens missing--> END_HELD --the last token, or too late--> closed
    SERVING --client left, or deadline--> ABORTING --Aborted, any end, worker died, or too late--> closed
    SERVING --Finished, Failed, or worker died and no attempt left--> closed

The outcome is decided once, when the phase leaves SERVING or END_HELD; what comes later only adds figures.
"""

from dataclasses import dataclass, field
from enum import Enum, auto

from diptych.core.events import Lifecycle, RequestRecord, Timeline
from diptych.core.ids import BlockHash, RequestId
from diptych.core.messages import Aborted, Failed, Finished, PeerAddress
from diptych.core.request import Request
from diptych.router.answer import Answer
from diptych.router.placement import Placement


class Phase(Enum):
    """What the router waits for."""

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
    placement: Placement
    give_up_s: float
    attempt: int = 0
    phase: Phase = Phase.SERVING
    outcome: str | None = None
    """`stop`, `length`, `aborted` or `failed`; None while it is open."""
    refused_by: set[PeerAddress] = field(default_factory=set)
    routed_s: float = 0.0
    open_choices: set[int] = field(init=False)
    """Those that may hold something on the decode worker: it has not told their ends."""
    num_output_tokens: int = 0
    """Of the choices whose ends it has told."""
    last_end: Finished | Aborted | None = None
    """What it told last."""

    def __post_init__(self) -> None:
        self.reopen()

    def reopen(self) -> None:
        """Start anew: another worker has the request now, or will."""
        self.open_choices = set(range(self.request.num_choices))
        self.num_output_tokens = 0
        self.last_end = None

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

    def to_record(self, failed: Failed | None, now_s: float) -> RequestRecord:
        """Return what is left at the end; `failed` is the worker's last word, if that was it."""
        if self.outcome is None:
            raise AssertionError(f"{self.request_id} has not ended")
        end = failed or self.last_end
        timeline: Timeline = dict(end.timeline) if end is not None else {}
        timeline[Lifecycle.ARRIVED] = self.request.arrived_s
        timeline[Lifecycle.ROUTED] = self.routed_s
        timeline.setdefault(Lifecycle.FINISHED, now_s)
        prefill = self.placement.prefill
        finished = end if isinstance(end, Finished) else None
        return RequestRecord(
            request_id=self.request_id,
            outcome=self.outcome,
            decode_worker=self.placement.decode.worker_id,
            prefill_worker=None if prefill is None else prefill.worker_id,
            num_prompt_tokens=len(self.request.prompt_token_ids),
            num_cached_tokens=self.answer.num_cached_tokens,
            num_output_tokens=self.answer.num_in_order if self.open_choices else self.num_output_tokens,
            num_preemptions=0 if finished is None else finished.num_preemptions,
            timeline=timeline,
        )
