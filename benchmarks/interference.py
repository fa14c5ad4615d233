"""What long prompts do to running answers: with prefill apart, and with both phases in one worker.

Two servers on the same cores take turns: one prefill and one decode worker (the default), and one mixed worker with all
cores. On each, 8 answers run in a quiet phase and in a loaded one, in which a client sends 2,000-token prompts without
pause. Token gaps are the client's. The target is on the ratio of the p99 gap under load to the quiet one.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

import diptych
from diptych.bench.statistics import estimate_median, median, percentile
from diptych.core.errors import BenchError
from harness.batch_window import SETTLE_TOKENS, gaps_between
from harness.client import Background, LoadClient
from harness.options import Options, setting
from harness.program import Outcome, ProgressBar, run_program
from harness.prompts import Prompts
from harness.result import Finding
from harness.serving import client_cores, pinned_to

MAX_P99_RATIO = 1.5
NUM_WORDS = 16
MIN_GAPS = 20
SETUPS = {"apart": {"prefill": 1, "decode": 1}, "mixed": {"mixed": 1}}
TITLES = {"apart": "1 prefill + 1 decode worker", "mixed": "1 mixed worker, all cores"}


@dataclass(frozen=True, kw_only=True)
class InterferenceOptions(Options):
    """Flags of this benchmark."""

    num_answers: int = setting(8, "Answers that run at a time.")
    prompt_tokens: int = setting(2_000, "Tokens of the prompts that disturb them.")
    phase_s: float = setting(15.0, "Seconds of each phase.")
    answer_tokens: int = setting(1_500, "Tokens that an answer may have; enough for a phase.")


@dataclass
class Phase:
    """The gaps of one phase."""

    gap_times_s: list[float] = field(default_factory=list)
    """When each gap ended, from the phase's beginning."""
    gaps_s: list[float] = field(default_factory=list)
    num_prompts: int = 0
    """Disturbing prompts that were read in this phase."""

    @property
    def p99_s(self) -> float:
        """The gap that 99 of 100 do not exceed."""
        return percentile(self.gaps_s, 99.0)


Pairs = dict[str, list[tuple[Phase, Phase]]]
"""Of each set-up: quiet and loaded phase of each pair."""


def measure(options: InterferenceOptions, progress: ProgressBar) -> Outcome:
    """Alternate set-ups and phases."""
    progress.expect(options.pairs * 4 + len(SETUPS))
    servers: dict[str, diptych.Server] = {}
    with ExitStack() as stack:
        for setup, workers in SETUPS.items():
            with progress.part(f"starting: {TITLES[setup]}"):
                servers[setup] = stack.enter_context(diptych.serve(options.serve_config(**workers)))
        stack.enter_context(pinned_to(client_cores(servers["apart"].status())))
        pairs = uvloop.run(_measure_pairs(servers, options, progress))
    return Outcome(_findings(pairs, options.seed), _samples(pairs), plot=lambda path: _plot(pairs, path))


async def _measure_pairs(
    servers: dict[str, diptych.Server], options: InterferenceOptions, progress: ProgressBar
) -> Pairs:
    prompts = Prompts(options.seed)
    pairs: Pairs = {setup: [] for setup in servers}
    for index in range(options.pairs):
        order = list(servers) if index % 2 == 0 else list(reversed(servers))
        for setup in order:
            phases: dict[bool, Phase] = {}
            async with LoadClient(servers[setup].url, servers[setup].model_name) as client:
                for is_loaded in (False, True) if index % 2 == 0 else (True, False):
                    with progress.part(f"pair {index + 1}, {setup}, {'loaded' if is_loaded else 'quiet'}"):
                        phases[is_loaded] = await _measure_phase(client, prompts, options, is_loaded=is_loaded)
            pairs[setup].append((phases[False], phases[True]))
    return pairs


async def _measure_phase(
    client: LoadClient, prompts: Prompts, options: InterferenceOptions, *, is_loaded: bool
) -> Phase:
    phase = Phase()
    texts = [prompts.text(NUM_WORDS) for _ in range(options.num_answers)]
    async with Background(client, texts, options.answer_tokens) as background:
        await background.wait_until_all_write(SETTLE_TOKENS)
        begin_s = time.monotonic()
        disturbing = asyncio.create_task(_disturb(client, prompts, options.prompt_tokens, phase)) if is_loaded else None
        await asyncio.sleep(options.phase_s)
        background.require_running()
        end_s = time.monotonic()
        if disturbing is not None:
            await _stop(disturbing)
    for trace in background.traces:
        times_s = [time_s for time_s in trace.token_times_s if begin_s <= time_s <= end_s]
        phase.gaps_s += gaps_between(times_s, begin_s, end_s)
        phase.gap_times_s += [time_s - begin_s for time_s in times_s[1:]]
    if len(phase.gaps_s) < MIN_GAPS:
        raise BenchError(f"{len(phase.gaps_s)} tokens in a phase are too few; ask for more --phase-s")
    return phase


async def _disturb(client: LoadClient, prompts: Prompts, num_tokens: int, phase: Phase) -> None:
    """Have one fresh prompt after the other read, until cancelled."""
    while True:
        await client.complete(prompts.token_ids(num_tokens), 1)
        phase.num_prompts += 1


async def _stop(task: asyncio.Task[None]) -> None:
    """Cancel a task that runs for ever; if it has failed instead, raise why."""
    task.cancel()
    (outcome,) = await asyncio.gather(task, return_exceptions=True)
    if not isinstance(outcome, asyncio.CancelledError) and outcome is not None:
        raise outcome


def _findings(pairs: Pairs, seed: int) -> list[Finding]:
    findings: list[Finding] = []
    for setup, phases in pairs.items():
        ratios = estimate_median([loaded.p99_s / quiet.p99_s for quiet, loaded in phases], seed)
        limit = MAX_P99_RATIO if setup == "apart" else None
        what = f"{TITLES[setup]}: p99 token gap beside long prompts, times the quiet one"
        findings.append(Finding(what=what, measured=ratios, unit="", at_most=limit))
        for name, index in (("quiet", 0), ("beside long prompts", 1)):
            for label, of_phase in (("p50", lambda phase: median(phase.gaps_s)), ("p99", lambda phase: phase.p99_s)):
                values = [of_phase(pair[index]) * 1e3 for pair in phases]
                what = f"{TITLES[setup]}: {label} token gap, {name}"
                findings.append(Finding(what=what, measured=estimate_median(values, seed), unit="ms"))
    return findings


def _samples(pairs: Pairs) -> dict[str, Any]:
    def raw(phase: Phase) -> dict[str, Any]:
        return {"gaps_s": phase.gaps_s, "gap_times_s": phase.gap_times_s, "num_prompts_read": phase.num_prompts}

    return {
        setup: [{"quiet": raw(quiet), "loaded": raw(loaded)} for quiet, loaded in phases]
        for setup, phases in pairs.items()
    }


def _plot(pairs: Pairs, path: Path) -> None:
    """Draw every token gap of the first pair over time, a panel a set-up."""
    from matplotlib.figure import Figure  # noqa: PLC0415  an extra
    from matplotlib.ticker import LogLocator, ScalarFormatter  # noqa: PLC0415

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels: Sequence[Any] = figure.subplots(1, len(pairs), sharey=True)
    for panel, (setup, phases) in zip(panels, pairs.items(), strict=True):
        for phase, label, color in zip(
            phases[0], ("quiet", "beside long prompts"), ("tab:blue", "tab:red"), strict=True
        ):
            gaps_ms = [gap * 1e3 for gap in phase.gaps_s]
            panel.scatter(
                phase.gap_times_s, gaps_ms, s=5, color=color, label=f"{label}, p99 {phase.p99_s * 1e3:.0f} ms"
            )
        panel.set_title(TITLES[setup])
        panel.set_xlabel("seconds")
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(ScalarFormatter())
        panel.yaxis.set_minor_locator(LogLocator(subs=()))
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    panels[0].set_ylabel("token gap, ms")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    run_program("interference", InterferenceOptions, __doc__, measure)
