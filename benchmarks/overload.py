"""What becomes of a server that is offered three times what it can carry, with and without refusals by prediction?

First the peak is searched: the highest rate at which 90 % meet the SLO. Then each set-up (`--admission predictive`,
which refuses what would be too late, and `none`, which lets it wait) is offered the peak, three times the peak, and at
once after that half of it. Told are the requests a second that met the SLO, the processes' memory, and how long after
the overload the last request came that missed.

    python benchmarks/overload.py --engine modeled --output benchmarks/results/latest
"""

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

import msgspec

from diptych.bench.completions import ServerApi
from diptych.bench.load import LoadPlan, run_load
from diptych.bench.measure import Bench, Method
from diptych.bench.record import Recorder, TargetFacts, new_result
from diptych.bench.sample import Sample
from diptych.bench.search import SearchLimits
from diptych.bench.summary import counted
from diptych.bench.target import ApiOptions, Target
from diptych.core.errors import DiptychError
from diptych.core.slo import Slo
from diptych.hardware.host import host_facts
from diptych.workload.named import WORKLOADS
from harness.lines import Lines
from harness.process_memory import proportional_bytes, tree_of

START_TIMEOUT_S = 120.0
PATIENCE_S = 20.0
OVERLOAD = 3.0
AFTERWARDS = 0.5
GOOD_SHARE = 0.9
"""Of the peak's goodput, under overload."""
MOST_RECOVERY_S = 5.0
MOST_GROWTH_SHARE = 0.05


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One set-up, in turn under a fitting load, under overload, and after that."""

    admission: str
    peak_met_per_s: float
    overload_met_per_s: float
    overload_refused: int
    overload_offered: int
    recovery_s: float
    """From the end of the overload to the last request that missed the SLO."""
    memory_bytes: list[int]
    """Of all processes, before and after the overload."""


class Overload:
    """The measurement of one set-up."""

    def __init__(self, options: argparse.Namespace) -> None:
        workload = WORKLOADS[options.workload]
        self.slo = Slo(options.slo_ttft_s or workload.slo_ttft_s, options.slo_tpot_s)
        self._sessions = workload.sessions
        self._options = options

    def target(self, admission: str) -> Target:
        """Return the server to start."""
        engine, slo = self._options.engine, self.slo
        limits = f"--slo-ttft-s {slo.ttft_s:g} --slo-tpot-s {slo.tpot_s:g}"
        return Target.parse(f"{admission}=diptych serve --engine {engine} {limits} --admission {admission}")

    async def find_peak(self) -> float:
        """Search the highest rate that the set-up with refusals carries."""
        target = self.target("predictive")
        limits = SearchLimits(self._options.start_per_s, 0.15, lowest_per_s=0.5)
        method = Method(self._sessions, [self.slo], self._options.duration_s, PATIENCE_S, limits)
        settings = {"duration_s": self._options.duration_s}
        facts = [TargetFacts(target.name, target.description)]
        folder = self._options.output / "overload-peak"
        recorder = Recorder(
            folder, new_result("benchmarks/overload.py", settings, self._options.workload, [self.slo], facts)
        )
        async with target.serving(ApiOptions(), START_TIMEOUT_S) as api:
            (found,) = await Bench(method, recorder, Lines("peak")).sweep(api, target.name, 0)
        return found.rate_per_s

    async def measure(self, admission: str, peak_per_s: float) -> Outcome:
        """Offer the peak, three times the peak, and half of it."""
        duration_s = self._options.duration_s
        async with self.target(admission).serving(ApiOptions(), START_TIMEOUT_S) as api:
            at_peak = await self._offer(api, peak_per_s, 1)
            before = _memory_bytes()
            overloaded = await self._offer(api, OVERLOAD * peak_per_s, 2)
            after = _memory_bytes()
            afterwards = await self._offer(api, AFTERWARDS * peak_per_s, 3)
        missed_s = [sample.planned_s for sample in afterwards if not sample.meets(self.slo)]
        return Outcome(
            admission=admission,
            peak_met_per_s=self._met_per_s(at_peak, duration_s),
            overload_met_per_s=self._met_per_s(overloaded, duration_s),
            overload_refused=sum(sample.status == 429 for sample in overloaded),
            overload_offered=len(overloaded),
            recovery_s=max(missed_s, default=0.0),
            memory_bytes=[before, after],
        )

    async def _offer(self, api: ServerApi, rate_per_s: float, edition: int) -> list[Sample]:
        seed = self._options.seed
        plan = LoadPlan(
            lambda: self._sessions(rate_per_s, seed), self._options.duration_s, PATIENCE_S, (os.getpid(), edition)
        )
        return await run_load(api, plan, lambda _: False)

    def _met_per_s(self, samples: list[Sample], duration_s: float) -> float:
        counting = counted(samples, duration_s)
        window_s = duration_s - min(sample.planned_s for sample in counting)
        return sum(sample.meets(self.slo) for sample in counting) / window_s


def _memory_bytes() -> int:
    return sum(proportional_bytes(pid) for pid in tree_of(os.getpid()) if pid != os.getpid())


def report(outcomes: list[Outcome], peak_per_s: float, slo: Slo) -> bool:
    """Print a table; tell whether the set-up with refusals did as it should."""
    print(
        f"peak {peak_per_s:.3g} requests/s within {slo}; met a second at the peak and at {OVERLOAD:g} times the peak:"
    )
    for one in outcomes:
        before, after = one.memory_bytes
        print(
            f"  {one.admission:10} {one.peak_met_per_s:5.2f}  {one.overload_met_per_s:5.2f}  "
            f"({one.overload_met_per_s / one.peak_met_per_s:.0%}); {one.overload_refused} of {one.overload_offered} "
            f"refused; memory {before / 1e6:.0f} then {after / 1e6:.0f} MB; recovered after {one.recovery_s:.1f} s"
        )
    with_refusals = outcomes[0]
    before, after = with_refusals.memory_bytes
    verdicts = {
        f"goodput at {OVERLOAD:g}x is {GOOD_SHARE:.0%} of the peak's": with_refusals.overload_met_per_s
        >= GOOD_SHARE * with_refusals.peak_met_per_s,
        f"recovered within {MOST_RECOVERY_S:g} s": with_refusals.recovery_s <= MOST_RECOVERY_S,
        "memory is flat": after <= before * (1 + MOST_GROWTH_SHARE),
    }
    for claim, is_true in verdicts.items():
        print(f"{'yes' if is_true else 'NO':>4}  {claim}")
    return all(verdicts.values())


async def _run(options: argparse.Namespace) -> bool:
    overload = Overload(options)
    peak_per_s = options.peak_per_s or await overload.find_peak()
    outcomes = [await overload.measure(admission, peak_per_s) for admission in ("predictive", "none")]
    options.output.mkdir(parents=True, exist_ok=True)
    content = {"host": host_facts(), "peak_per_s": peak_per_s, "slo": overload.slo, "outcomes": outcomes}
    (options.output / "overload.json").write_bytes(msgspec.json.format(msgspec.json.encode(content)))
    return report(outcomes, peak_per_s, overload.slo)


def main() -> int:
    """Measure; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["openvino", "modeled"], default="openvino", help="[openvino]")
    parser.add_argument("--workload", choices=WORKLOADS, default="chat", help="[chat]")
    parser.add_argument("--slo-ttft-s", type=float, help="seconds to the first token [the workload's]")
    parser.add_argument("--slo-tpot-s", type=float, default=0.04, help="seconds a token after that [0.04]")
    parser.add_argument("--peak-per-s", type=float, help="do not search the peak")
    parser.add_argument("--start-per-s", type=float, default=5.0, help="where to begin to search [5]")
    parser.add_argument("--duration-s", type=float, default=30.0, help="of each load [30]")
    parser.add_argument("--seed", type=int, default=0, help="[0]")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/latest"), help="folder for results")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended then too
    try:
        return 0 if asyncio.run(_run(options)) else 1
    except DiptychError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
