"""A measurement in words and rows, for the terminal as for the page."""

from collections.abc import Iterator, Sequence

from diptych.bench.record import Result
from diptych.bench.search import Goodput
from diptych.bench.statistics import estimate_median
from diptych.bench.summary import Distribution, RunSummary
from diptych.core.slo import REQUIRED_ATTAINMENT, Slo

RUN_HEADINGS = (
    "server",
    "seed",
    "requests/s",
    "offered",
    "failed",
    "TTFT p50",
    "TTFT p99",
    "TPOT p50",
    "TPOT p99",
    "TBT p99",
    "gap p99",
    "longest gap",
    "tokens/s",
)


def run_rows(result: Result) -> Iterator[list[str]]:
    """Yield a row a run: the columns of RUN_HEADINGS, then one a SLO."""
    for run in result.runs:
        summary = run.summary
        yield [
            run.target,
            str(run.seed),
            f"{summary.rate_per_s:.3g}",
            str(summary.num_offered),
            str(summary.num_failed),
            *_latencies(summary),
            f"{summary.output_tokens_per_s:,.0f}",
            *(f"{found.share:.0%}" for found in summary.attainments),
        ]


def _latencies(summary: RunSummary) -> list[str]:
    return [
        duration(summary.ttft_s, "median"),
        duration(summary.ttft_s, "p99"),
        duration(summary.tpot_s, "median"),
        duration(summary.tpot_s, "p99"),
        duration(summary.tbt_s, "p99"),
        duration(summary.gap_s, "p99"),
        duration(summary.gap_s, "largest"),
    ]


def duration(found: Distribution | None, name: str) -> str:
    """Write one value of a distribution; a dash if there is none."""
    return "-" if found is None else time_text(getattr(found, name))


def time_text(seconds: float) -> str:
    """Write a duration with three digits."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def goodput_rows(result: Result) -> Iterator[list[str]]:
    """Yield a row a server and SLO: server, SLO, goodput, brackets, ratio to the last server."""
    for facts in result.targets:
        for index, slo in enumerate(result.slos):
            found = [sweep.goodputs[index] for sweep in result.sweeps if sweep.target == facts.name]
            if found:
                yield [
                    facts.name,
                    str(slo),
                    _goodput_text(found),
                    _bracket_text(found),
                    ratio_text(result, facts.name, slo),
                ]


FEWEST_FOR_INTERVAL = 6
"""With fewer samples the bootstrap interval of a median is their range, which holds it less often than that."""


def _goodput_text(found: Sequence[Goodput]) -> str:
    rates = [goodput.rate_per_s for goodput in found]
    if not any(rates):
        return "none"
    estimate = estimate_median(rates, 0)
    text = f"{estimate.median:.3g} requests/s"
    return text if len(rates) == 1 else f"{text} ({estimate.low:.3g} to {estimate.high:.3g})"


def _bracket_text(found: Sequence[Goodput]) -> str:
    return "; ".join(f"{goodput.met_per_s:.3g} met, {_rate_text(goodput.missed_per_s)} missed" for goodput in found)


def _rate_text(rate_per_s: float | None) -> str:
    return "none" if rate_per_s is None else f"{rate_per_s:.3g}"


def ratio_text(result: Result, target: str, slo: Slo) -> str:
    """Write a server's goodput over the last server's; empty for the last."""
    for ratio in result.ratios:
        if ratio.target == target and ratio.slo == slo:
            estimate = ratio.estimate
            interval = "" if estimate.num_samples == 1 else f" ({estimate.low:.2f} to {estimate.high:.2f})"
            return f"{estimate.median:.2f} times{interval}"
    return ""


def verdicts(result: Result) -> Iterator[str]:
    """Yield a sentence for each comparison that was made."""
    for ratio in result.ratios:
        estimate = ratio.estimate
        kind = "range" if estimate.num_samples < FEWEST_FOR_INTERVAL else "95 % interval"
        interval = f" ({kind} {estimate.low:.2f} to {estimate.high:.2f}, {estimate.num_samples} seeds)"
        yield (
            f"At {slo_text(ratio.slo)}, {ratio.target} carries {estimate.median:.2f} times the load of {ratio.over}"
            f"{interval if estimate.num_samples > 1 else ' (one seed: no interval)'}."
        )


def slo_text(slo: Slo) -> str:
    """Write an SLO in words."""
    return f"TTFT {time_text(slo.ttft_s)}, TPOT {time_text(slo.tpot_s)}"


def warnings(result: Result) -> Iterator[str]:
    """Yield what a reader should know before trusting the figures."""
    if not result.is_complete:
        yield "The measurement was interrupted: the figures are those of the runs that were complete."
    late = [run for run in result.runs if _is_client_late(run.summary)]
    if late:
        yield (
            f"In {len(late)} of {len(result.runs)} runs this client sent its requests late (p99 over a tenth of the "
            "median TTFT): the machine is too small for both, so TTFT is overstated."
        )
    if result.host.load_average_1m > result.host.num_cores / 2:
        yield f"The machine was busy before the measurement began (load {result.host.load_average_1m:.1f})."
    errors = {error: num for run in result.runs for error, num in run.summary.errors.items()}
    for error, _ in sorted(errors.items(), key=lambda item: -item[1])[:3]:
        yield f"Requests failed: {error}"


def _is_client_late(summary: RunSummary) -> bool:
    return summary.ttft_s is not None and summary.lateness_p99_s > max(summary.ttft_s.median / 10, 0.01)


def definition() -> str:
    """Say what goodput is."""
    return (
        f"Goodput: the highest rate at which {REQUIRED_ATTAINMENT:.0%} of all offered requests are answered whole and "
        "within both limits; refused and failed requests are misses. Where the share crosses that line is interpolated "
        "between the highest rate that met it and the lowest that missed it."
    )
