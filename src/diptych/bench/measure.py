"""Runs, sweeps and comparisons: what to send to which server, in which order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from diptych.bench.load import Api, LoadPlan, run_load
from diptych.bench.record import Ratio, Recorder, Sweep
from diptych.bench.sample import Sample
from diptych.bench.search import Goodput, GoodputSearch, SearchLimits
from diptych.bench.statistics import estimate_median
from diptych.bench.summary import RunSummary, summarize
from diptych.bench.target import ApiOptions, Target
from diptych.core.slo import REQUIRED_ATTAINMENT, Slo
from diptych.workload.named import SessionSource

HOPELESS_MISSES = 3.0
"""A run is cut short when so many times the allowed share of its requests have missed every SLO."""
NEXT_STEP = 1.3
"""The second sweep of a server begins where the first ended, and looks around in smaller steps."""


class Listener(Protocol):
    """Hears how far a measurement is."""

    def on_stage(self, text: str) -> None:
        """Something begins."""
        ...

    def on_ended(self, num_ended: int, num_expected: int) -> None:
        """A request of the running run has ended."""
        ...

    def on_run(self, target: str, seed: int, summary: RunSummary) -> None:
        """A run has ended."""
        ...


@dataclass(frozen=True, slots=True)
class Method:
    """How every server is measured alike."""

    source: SessionSource
    slos: Sequence[Slo]
    duration_s: float
    patience_s: float
    limits: SearchLimits


@dataclass(frozen=True, slots=True)
class Bench:
    """Measures servers by one method, and keeps what comes out."""

    method: Method
    recorder: Recorder
    listener: Listener

    async def run(
        self, api: Api, target: str, rate_per_s: float, seed: int, *, may_cut_short: bool = False
    ) -> RunSummary:
        """Offer one load; end it early, if it may be cut short, when it can meet no SLO any more."""
        method = self.method
        self.listener.on_stage(f"{target}, seed {seed}: {rate_per_s:.3g} requests/s")
        watch = _Watch(method, rate_per_s, self.listener, may_cut_short=may_cut_short)
        result = self.recorder.result
        edition = (int(datetime.fromisoformat(result.started_at).timestamp()), len(result.runs))
        plan = LoadPlan(lambda: method.source(rate_per_s, seed), method.duration_s, method.patience_s, edition)
        samples = await run_load(api, plan, watch.on_sample)
        summary = summarize(samples, method.slos, rate_per_s, method.duration_s, was_cut_short=watch.is_hopeless)
        self.recorder.add_run(target, seed, samples, summary)
        self.listener.on_run(target, seed, summary)
        return summary

    async def sweep(self, api: Api, target: str, seed: int, limits: SearchLimits | None = None) -> list[Goodput]:
        """Search the goodput at every SLO."""
        search = GoodputSearch(self.method.slos, limits or self.method.limits)
        while (rate_per_s := search.next_rate()) is not None:
            summary = await self.run(api, target, rate_per_s, seed, may_cut_short=True)
            search.on_result(rate_per_s, {found.slo: found.share for found in summary.attainments})
        self.recorder.result.sweeps.append(Sweep(target, seed, search.goodputs()))
        self.recorder.save()
        return search.goodputs()

    async def compare(
        self, targets: Sequence[Target], seeds: Sequence[int], api_options: ApiOptions, start_timeout_s: float
    ) -> None:
        """Sweep every server with every seed, in turn: forwards, then backwards, so that drift favours none."""
        limits: dict[str, SearchLimits] = {}
        for round_number, seed in enumerate(seeds):
            for target in targets if round_number % 2 == 0 else reversed(targets):
                self.listener.on_stage(f"{target.name}: starting")
                async with target.serving(api_options, start_timeout_s) as api:
                    self.recorder.on_model(target.name, api.model)
                    goodputs = await self.sweep(api, target.name, seed, limits.get(target.name))
                found = [goodput.rate_per_s for goodput in goodputs if goodput.rate_per_s > 0]
                if found:
                    limits[target.name] = replace(self.method.limits, start_per_s=min(found), step=NEXT_STEP)
            self.recorder.result.ratios = ratios_of(self.recorder.result.sweeps, [target.name for target in targets])
            self.recorder.save()


class _Watch:
    """Looks at requests as they end."""

    def __init__(self, method: Method, rate_per_s: float, listener: Listener, *, may_cut_short: bool) -> None:
        self._may_cut_short = may_cut_short
        self._slos = method.slos
        self._num_expected = max(round(rate_per_s * method.duration_s), 1)
        self._on_ended: Callable[[int, int], None] = listener.on_ended
        self._num_ended = 0
        self._num_missed = 0
        self.is_hopeless = False

    def on_sample(self, sample: Sample) -> bool:
        """Take note of a request's end; True: so many have missed that the run can show nothing more."""
        self._num_ended += 1
        self._num_missed += not any(sample.meets(slo) for slo in self._slos)
        self._on_ended(self._num_ended, self._num_expected)
        allowed = (1 - REQUIRED_ATTAINMENT) * self._num_expected
        self.is_hopeless = (
            self._may_cut_short and len(self._slos) > 0 and self._num_missed > HOPELESS_MISSES * allowed + 1
        )
        return self.is_hopeless


def ratios_of(sweeps: Sequence[Sweep], names: Sequence[str]) -> list[Ratio]:
    """Compare every server's goodput with the last one's, seed by seed; the last is what one would have otherwise.

    Seeds at which either has no goodput at all are left out: a ratio with zero says nothing.
    """
    of_target = {name: {sweep.seed: sweep for sweep in sweeps if sweep.target == name} for name in names}
    base = names[-1]
    ratios: list[Ratio] = []
    for name in names[:-1]:
        seeds = sorted(of_target[name].keys() & of_target[base].keys())
        for index, slo in enumerate(sweeps[0].goodputs[i].slo for i in range(len(sweeps[0].goodputs))):
            pairs = [
                (of_target[name][seed].goodputs[index].rate_per_s, of_target[base][seed].goodputs[index].rate_per_s)
                for seed in seeds
            ]
            values = [one / other for one, other in pairs if one > 0 and other > 0]
            if values:
                ratios.append(Ratio(slo, name, base, estimate_median(values, 0)))
    return ratios
