"""The router's settings, with defaults that suit one machine."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """Limits and times; every wait in the router ends by one of them."""

    max_outstanding_requests: int = 256
    """Requests that may be in the system, the waiting and the aborting ones too; more are refused with 429."""
    local_prefill_max_tokens: int = 32
    """A prompt of which no more than this is uncached is read by its decode worker."""
    is_adaptive: bool = False
    """Whether to place requests by predicted times: any worker may then do either phase."""
    slo_ttft_s: float = 1.0
    slo_tpot_s: float = 0.05
    """What predictions are held against, where `is_adaptive`."""
    heartbeat_timeout_s: float = 10.0
    """A worker that is silent for longer gets no new work. Generous: a busy worker's heartbeats may be late."""
    max_attempts: int = 3
    """How often one request may be sent to workers before it fails."""
    deadline_grace_s: float = 1.0
    """How long after a request's deadline its decode worker may still say so itself."""
    abort_timeout_s: float = 10.0
    """How long an aborted request counts as load while its worker does not confirm."""
    lost_token_timeout_s: float = 5.0
    """How long an answer's end waits for tokens that come before it on another worker's socket."""
