"""Whether to take a request at all. Pure.

The first question of step 2: a request that is taken is served or its client hears why not, so what cannot be served in
time is better refused here, before it holds anything.

Two questions. Is there a place? And, where the user has said what answers shall keep to: will this one? A request that
is predicted to miss the SLO for the load of others would be counted as missed anyway, and would make others miss it
too. One that would miss it on an idle server is not refused for that: it is slow, and the server is not overloaded.

By which load? `early` goes by what there is when the request comes: the reader's queue, and the owner's batch. But the
request joins that batch only when its prompt has been read, and so do all that were let in before it and wait for that
still. While the batch looks small all are let in, and when they have arrived in it none is: load swings, as slowly as
prompts are read. `predictive` goes by the batch when this prompt will have been read (`Pair.step_s`), and that calms it
(`benchmarks/admission_swing.py`). `none` refuses nothing for the SLO.

See: Mooncake (Qin et al., arXiv 2407.00079, section 7): early rejection, and early rejection based on prediction.

Invariant: no more than `max_outstanding` requests are ever in the system, which bounds every queue behind this one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from diptych.core.control import AdmissionName
from diptych.core.slo import Slo
from diptych.policy.pairing import Pair

MIN_RETRY_AFTER_S = 1.0
MAX_RETRY_AFTER_S = 60.0
RETRY_SHARE_OF_PLACES = 0.25
"""Clients that are refused together come back together; a quarter of the places is then free, not one."""
TTFT_MARGIN = 0.9
"""Of the time to the first token: under overload all that are let in wait as long as is allowed, so less must be."""
TPOT_MARGIN = 1.15
"""Of the time of a token: answers that end meanwhile make up for a little too many of them."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """The request may be placed."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """The request must be refused with HTTP 429."""

    retry_after_s: float
    """When a new try makes sense."""
    reason: str
    """For the client, one line."""


Admission = Admitted | Rejected
"""What a policy answers."""


def admit(num_outstanding: int, max_outstanding: int, mean_request_s: float | None) -> Admission:
    """Refuse a request if `max_outstanding` others are there and have not ended.

    `mean_request_s`: how long requests took of late, from arrival to end; None if none has ended yet.
    """
    if num_outstanding < max_outstanding:
        return Admitted()
    return Rejected(
        retry_after_s=retry_after_s(mean_request_s),
        reason=f"{num_outstanding} requests are running or waiting, of at most {max_outstanding}; try again later",
    )


_OWNER_STEP_S: Mapping[AdmissionName, Callable[[Pair], float]] = {
    "early": lambda pair: pair.step_now_s,
    "predictive": lambda pair: pair.step_s,
}
"""Which of the forecasts of the owner's step a policy goes by; who is absent goes by none."""


def admit_by_forecast(name: AdmissionName, predict: Callable[[], Pair], slo: Slo) -> Admission:
    """Refuse a request if the pair chosen for it would miss the SLO, and would not without others.

    `predict` says what is predicted of the pair; whoever refuses nothing for the SLO does not ask.
    """
    find_step_s = _OWNER_STEP_S.get(name)
    if find_step_s is None:
        return Admitted()
    pair = predict()
    return _admit_to_slo(pair, slo, find_step_s(pair))


def _admit_to_slo(pair: Pair, slo: Slo, step_s: float) -> Admission:
    late_s = pair.ttft_s - max(TTFT_MARGIN * slo.ttft_s, pair.least_ttft_s + slo.ttft_s / 2)
    if late_s > 0:
        reason = f"the first token is due in {slo.ttft_s:g} s (--slo-ttft-s) and predicted in {pair.ttft_s:.1f} s"
        return Rejected(_bounded_s(late_s), f"overloaded: {reason}; try again later")
    most_step_s = TPOT_MARGIN * pair.step_share * slo.tpot_s
    if step_s > most_step_s > pair.least_step_s:
        tpot_ms, step_ms = slo.tpot_s * 1e3, step_s * 1e3
        reason = f"a token is due every {tpot_ms:g} ms (--slo-tpot-s) and predicted every {step_ms:.0f} ms"
        return Rejected(MIN_RETRY_AFTER_S, f"overloaded: {reason}; try again later")
    return Admitted()


def _bounded_s(retry_after_s: float) -> float:
    return min(max(retry_after_s, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)


def retry_after_s(mean_request_s: float | None) -> float:
    """Return when `RETRY_SHARE_OF_PLACES` of the places will be free again.

    With all places taken they empty at a rate of places / mean_request_s (Little's law), so the number cancels out.
    """
    if mean_request_s is None:
        return MIN_RETRY_AFTER_S
    return _bounded_s(RETRY_SHARE_OF_PLACES * mean_request_s)
