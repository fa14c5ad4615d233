"""One run in numbers: who met which SLO, and how latencies are distributed. Pure."""

from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np

from diptych.bench.sample import Sample
from diptych.core.slo import Slo

WARM_UP_SHARE = 0.1
"""Of a run's duration: requests that come in it find a server with nothing to do, and do not count."""
PERCENTS = (50.0, 90.0, 95.0, 99.0)
NUM_ERRORS_SHOWN = 3


class Distribution(msgspec.Struct, frozen=True):
    """Percentiles (those of PERCENTS, in their order), seconds."""

    mean: float
    percentiles: list[float]
    largest: float

    @property
    def median(self) -> float:
        """The 50th percentile."""
        return self.percentiles[0]

    @property
    def p99(self) -> float:
        """The 99th percentile."""
        return self.percentiles[-1]


class Attainment(msgspec.Struct, frozen=True):
    """How many of the offered requests met an SLO."""

    slo: Slo
    num_met: int
    num_offered: int

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self.num_met / self.num_offered if self.num_offered else 0.0


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What one run showed."""

    rate_per_s: float
    """Asked for."""
    offered_per_s: float
    """As it came, after the warm-up."""
    num_offered: int
    """Requests that count."""
    num_failed: int
    errors: dict[str, int]
    """The most frequent ones."""
    attainments: list[Attainment]
    ttft_s: Distribution | None
    """None: no request was answered."""
    tpot_s: Distribution | None
    tbt_s: Distribution | None
    """Of each request's worst tenth of gaps (Mooncake's TBT)."""
    gap_s: Distribution | None
    """Of all gaps between events, of all requests."""
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    output_tokens_per_s: float
    lateness_p99_s: float
    """How late this client was with its requests; where it is not far below the TTFT, the client is too slow."""
    was_cut_short: bool

    def attainment(self, slo: Slo) -> Attainment:
        """Return how many met one of the run's SLOs."""
        return next(attainment for attainment in self.attainments if attainment.slo == slo)


def counted(samples: Sequence[Sample], duration_s: float) -> list[Sample]:
    """Return the requests that count."""
    return [sample for sample in samples if sample.planned_s >= WARM_UP_SHARE * duration_s]


def attainment(samples: Sequence[Sample], slo: Slo) -> Attainment:
    """Count who met an SLO; refused and failed requests did not."""
    return Attainment(slo, sum(sample.meets(slo) for sample in samples), len(samples))


def summarize(
    samples: Sequence[Sample], slos: Sequence[Slo], rate_per_s: float, duration_s: float, *, was_cut_short: bool = False
) -> RunSummary:
    """Sum up a run of `duration_s`."""
    counting = counted(samples, duration_s)
    whole = [sample for sample in counting if sample.is_whole]
    errors = Counter(sample.error for sample in counting if sample.error)
    end_s = max((sample.ended_s for sample in counting), default=duration_s)
    num_output_tokens = sum(sample.num_output_tokens for sample in whole)
    window_s = duration_s * (1 - WARM_UP_SHARE)
    return RunSummary(
        rate_per_s=rate_per_s,
        offered_per_s=len(counting) / window_s,
        num_offered=len(counting),
        num_failed=len(counting) - len(whole),
        errors=dict(errors.most_common(NUM_ERRORS_SHOWN)),
        attainments=[attainment(counting, slo) for slo in slos],
        ttft_s=distribution([sample.ttft_s for sample in whole]),
        tpot_s=distribution([sample.tpot_s for sample in whole if sample.num_output_tokens > 1]),
        tbt_s=distribution([sample.tbt_s for sample in whole if len(sample.token_times_s) > 1]),
        gap_s=distribution([gap for sample in whole for gap in sample.gaps_s]),
        num_prompt_tokens=sum(sample.num_prompt_tokens for sample in whole),
        num_cached_tokens=sum(sample.num_cached_tokens for sample in whole),
        num_output_tokens=num_output_tokens,
        output_tokens_per_s=num_output_tokens / max(end_s - WARM_UP_SHARE * duration_s, 1e-9),
        lateness_p99_s=float(np.percentile([sample.sent_s - sample.planned_s for sample in counting] or [0.0], 99)),
        was_cut_short=was_cut_short,
    )


def distribution(values_s: Sequence[float]) -> Distribution | None:
    """Return the distribution of values; None of none."""
    if not values_s:
        return None
    values = np.asarray(values_s)
    return Distribution(float(values.mean()), np.percentile(values, PERCENTS).tolist(), float(values.max()))
