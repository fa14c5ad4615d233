"""How fast does the router find out who holds how much of a prompt, and what does the index take?

A thousand workers hold ten million blocks of chats from the trace in `traces/`; prompts of 4,000 blocks are looked up,
most of them the next turn of a chat that somebody holds. All is told to the index in the frames that workers send, and
answers are checked against the workers' own. Beside it NVIDIA Dynamo's index, which is written in Rust, driven with the
same blocks through its Python interface: its times include handing 4,000 numbers over to it. `--pairs`: how often all
of it is done.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from diptych.bench.statistics import Estimate, estimate_median, percentile
from diptych.core.errors import BenchError
from diptych.models.cache import default_cache_dir
from diptych.models.progress import stderr_progress
from harness.options import Options, setting
from harness.prefix_load import LoadSettings
from harness.program import Outcome, ProgressBar, run_program
from harness.result import Finding, single
from peers.stock import Environment, Stock

FOLDER = Path(__file__).parent
TRACE = FOLDER.parent / "traces" / "mooncake-conversation-1000.jsonl"
OURS = FOLDER / "harness" / "diptych_index.py"
DYNAMO = FOLDER / "peers" / "dynamo_index.py"
DYNAMO_ENVIRONMENT = Environment(
    "dynamo-runtime", FOLDER / "peers" / "requirements" / "dynamo-runtime.txt", needed_bytes=300_000_000
)
TIMEOUT_S = 1_500.0
"""Of one side."""
MAX_P50_US = 200.0
MAX_P99_US = 2_000.0
MAX_ENTRY_BYTES = 200.0


@dataclass(frozen=True, kw_only=True)
class IndexOptions(Options):
    """Flags of this benchmark. Those of models and engines have no effect: there is none."""

    pairs: int = setting(1, "How often each side is measured, in turns.")
    num_workers: int = setting(1_000, "Workers.")
    blocks_per_worker: int = setting(10_000, "Blocks in the cache of each.")
    num_copies: int = setting(64, "Copies of the trace that requests are drawn from: more, and less is shared.")
    prompt_blocks: int = setting(4_000, "Blocks of a prompt.")
    num_prompts: int = setting(1_000, "Prompts.")
    trace: Path = setting(TRACE, "Trace, as in traces/.")  # noqa: RUF009  a field
    peer: str = setting("dynamo", "What to measure beside it.", ("dynamo", "none"))


def measure(options: IndexOptions, progress: ProgressBar) -> Outcome:
    """Measure both sides in turns."""
    sides = {"diptych": [sys.executable, str(OURS)]}
    if options.peer == "dynamo":
        stock = Stock(default_cache_dir() / "peers", stderr_progress())
        stock.install(DYNAMO_ENVIRONMENT)
        sides["dynamo"] = [str(stock.python(DYNAMO_ENVIRONMENT)), str(DYNAMO)]
    progress.expect(options.pairs * len(sides))
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for number in range(options.pairs):
        for name, program in sides.items():
            with progress.part(name):
                measured[name].append(_run(name, program, _load(options, number)))
    findings = [finding for name, runs in measured.items() for finding in _findings(name, runs, options)]
    return Outcome(findings, {name: [_raw(one) for one in runs] for name, runs in measured.items()})


def _load(options: IndexOptions, number: int) -> LoadSettings:
    return LoadSettings(
        trace=options.trace,
        num_workers=options.num_workers,
        blocks_per_worker=options.blocks_per_worker,
        num_copies=options.num_copies,
        prompt_blocks=options.prompt_blocks,
        num_prompts=options.num_prompts,
        seed=options.seed + number,
    )


def _run(name: str, program: list[str], load: LoadSettings) -> dict[str, Any]:
    command = [*program, *load.arguments()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise BenchError(f"{name} was not done within {TIMEOUT_S:.0f} s; ask for fewer blocks") from None
    if done.returncode:
        raise BenchError(f"{name} failed: {done.stderr.strip()[-500:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _findings(name: str, runs: list[dict[str, Any]], options: IndexOptions) -> list[Finding]:
    passes = [one for run in runs for one in run["match_s"]]
    is_ours = name == "diptych"

    def estimate(values: list[float]) -> Estimate:
        return estimate_median(values, options.seed)

    findings = [
        Finding(
            what=f"{name}: a prompt of {options.prompt_blocks:,} blocks, p50",
            measured=estimate([percentile(one, 50.0) * 1e6 for one in passes]),
            unit="us",
            at_most=MAX_P50_US if is_ours else None,
        ),
        Finding(
            what=f"{name}: the same, p99",
            measured=estimate([percentile(one, 99.0) * 1e6 for one in passes]),
            unit="us",
            at_most=MAX_P99_US if is_ours else None,
        ),
        Finding(
            what=f"{name}: memory of {runs[0]['num_entries']:,} blocks and workers, each",
            measured=estimate([run["memory_bytes"] / run["num_entries"] for run in runs]),
            unit="bytes",
            at_most=MAX_ENTRY_BYTES if is_ours else None,
        ),
        Finding(
            what=f"{name}: blocks taken in a second",
            measured=estimate([run["num_entries"] / run["apply_s"] for run in runs]),
            unit="blocks/s",
        ),
        Finding(
            what=f"{name}: a worker of {options.blocks_per_worker:,} blocks is removed, longest step of it",
            measured=estimate([max(steps) * 1e3 for run in runs for steps in run["remove_s"]]),
            unit="ms",
        ),
    ]
    return findings + (_own_findings(runs, options.seed) if is_ours else [])


def _own_findings(runs: list[dict[str, Any]], seed: int) -> list[Finding]:
    """Return what is measured of Diptych alone."""
    cpu_passes = [one for run in runs for one in run["match_cpu_s"]]
    return [
        Finding(
            what="diptych: distinct blocks among them",
            measured=single(median(run["num_distinct_blocks"] for run in runs)),
            unit="blocks",
        ),
        Finding(
            what="diptych: the same, p99 of its steps",
            measured=single(median(percentile(steps, 99.0) * 1e3 for run in runs for steps in run["remove_s"])),
            unit="ms",
        ),
        Finding(
            what="diptych: the same, all steps together",
            measured=single(median(sum(steps) * 1e3 for run in runs for steps in run["remove_s"])),
            unit="ms",
        ),
        Finding(
            what="diptych: a change of one block stored and one removed, decoding included",
            measured=single(median(run["change_s"] * 1e6 for run in runs)),
            unit="us",
        ),
        Finding(
            what="diptych: a prompt of the first kind, p99 in time of the core: without what it does for others",
            measured=estimate_median([percentile(one, 99.0) * 1e6 for one in cpu_passes], seed),
            unit="us",
            at_most=MAX_P99_US,
        ),
        Finding(
            what="diptych: the worst prompt, of which each of 1,000 workers holds another part",
            measured=single(median(value * 1e6 for run in runs for value in run["worst_match_s"])),
            unit="us",
        ),
    ]


def _raw(run: dict[str, Any]) -> dict[str, Any]:
    """Return a side's samples; of the many slices of a removal only what they come to."""
    points = (1.0, 10.0, 50.0, 90.0, 99.0, 99.9, 100.0)
    times_us = [[round(value * 1e6, 1) for value in one] for one in run["match_s"]]
    cpu_times_us = [[round(value * 1e6, 1) for value in one] for one in run["match_cpu_s"]]
    return {name: value for name, value in run.items() if name not in {"match_s", "match_cpu_s", "remove_s"}} | {
        "match_us": times_us,
        "match_us_percentiles": [{f"p{point:g}": percentile(one, point) for point in points} for one in times_us],
        "match_cpu_us_percentiles": [
            {f"p{point:g}": percentile(one, point) for point in points} for one in cpu_times_us
        ],
        "remove": [
            {
                "num_steps": len(steps),
                "median_s": median(steps),
                "p99_s": percentile(steps, 99.0),
                "longest_s": max(steps),
                "sum_s": sum(steps),
            }
            for steps in run["remove_s"]
        ],
    }


if __name__ == "__main__":
    run_program("prefix_index", IndexOptions, __doc__, measure)
