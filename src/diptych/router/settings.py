"""The router's settings, with defaults that suit one machine."""

from dataclasses import dataclass

from diptych.core.control import AdmissionName, RoutingName
from diptych.core.ids import FIRST_ROUTER, RouterId


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """Limits and times; every wait in the router ends by one of them."""

    max_outstanding_requests: int = 256
    """Requests that may be in the system, the waiting and the aborting ones too; more are refused with 429."""
    local_prefill_max_tokens: int = 32
    """A prompt of which no more than this is uncached is read by its decode worker."""
    routing: RoutingName = "overlap-load"
    """How workers are chosen."""
    routing_temperature: float = 0.0
    balancing_threshold: float = 2.0
    routing_seed: int = 0
    """Of the policies that draw."""
    slo_ttft_s: float = 1.0
    slo_tpot_s: float = 0.05
    """What predictions are held against."""
    admission: AdmissionName = "none"
    """Whether to refuse what would miss it for the load of others, and by which load."""
    heartbeat_timeout_s: float = 10.0
    """A worker that is silent for longer gets no new work. Generous: a busy worker's heartbeats may be late."""
    max_refusals: int = 3
    """How often workers may refuse a request before it fails."""
    max_migrations: int = 3
    """How often a request may lose its worker before it fails: it might be the request that kills them."""
    queue_timeout_s: float | None = None
    """How long after its arrival a request may wait for its prompt to be begun; None: until its deadline."""
    homeless_timeout_s: float = 30.0
    """How long a request waits for a worker to come back when there is none."""
    router: RouterId = FIRST_ROUTER
    """Which of the server's routers this is,"""
    frontend: int = 1
    """and which life of its frontend."""
    deadline_grace_s: float = 1.0
    """How long after a request's deadline its decode worker may still say so itself."""
    abort_timeout_s: float = 10.0
    """How long an aborted request counts as load while its worker does not confirm."""
    lost_token_timeout_s: float = 5.0
    """How long an answer's end waits for tokens that come before it on another worker's socket."""
