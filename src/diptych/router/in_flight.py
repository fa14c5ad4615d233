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
    finished: Finished | None = None
    """What the decode worker said at the end, if it came to that."""

    @property
    def request_id(self) -> RequestId:
        """The request's id."""
        return self.request.request_id

    def to_record(self, end: Finished | Failed | Aborted | None, now_s: float) -> RequestRecord:
        """Return what is left at the end; `end` is the worker's last word, None if it had none."""
        if self.outcome is None:
            raise AssertionError(f"{self.request_id} has not ended")
        timeline: Timeline = dict(end.timeline) if end is not None else {}
        timeline[Lifecycle.ARRIVED] = self.request.arrived_s
        timeline[Lifecycle.ROUTED] = self.routed_s
        timeline.setdefault(Lifecycle.FINISHED, now_s)
        prefill = self.placement.prefill
        num_cached_tokens, num_preemptions, num_output_tokens = 0, 0, self.answer.num_in_order
        match end:
            case Finished():
                num_cached_tokens, num_preemptions = end.num_cached_tokens, end.num_preemptions
                num_output_tokens = end.num_output_tokens
            case Aborted():
                num_output_tokens = end.num_output_tokens
        return RequestRecord(
            request_id=self.request_id,
            outcome=self.outcome,
            decode_worker=self.placement.decode.worker_id,
            prefill_worker=None if prefill is None else prefill.worker_id,
            num_prompt_tokens=len(self.request.prompt_token_ids),
            num_cached_tokens=num_cached_tokens,
            num_output_tokens=num_output_tokens,
            num_preemptions=num_preemptions,
            timeline=timeline,
        )
