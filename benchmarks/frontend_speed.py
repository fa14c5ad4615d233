"""How many tokens a second can the frontend stream, and what does it spend its time on?

The modeled engine takes no time, so that the front process (HTTP, router, text) on one core is the limit; worker and
client share another core. Each pair has all streams run as fast as they can, and then at a pace: steps that take
`--step-ms`, where gaps between tokens should be those of the steps. Then the same load on two servers in turn, with and
without metrics: what counting costs. At the end py-spy looks at the front process under full load, and says what the
time goes into.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from threading import Thread
from typing import Any

import diptych
from diptych.bench.statistics import estimate_median, percentile
from diptych.core.errors import BenchError
from diptych.hardware.known_costs import SMOLLM2_135M_ONE_AVX2_CORE
from harness.options import MODELED_KV_BYTES, Options, setting
from harness.process_memory import tree_of
from harness.program import Outcome, ProgressBar, run_program
from harness.raw_streams import RawStream, run_streams
from harness.result import Finding, single

MIN_TOKENS_PER_S = 20_000
MAX_ADDED_GAP_MS = 10.0
MAX_COUNTING_RATIO = 1.02
FRONT_MODULE = b"diptych.launch.front"
PROMPT = [5] * 16
ALL_CORES = sorted(os.sched_getaffinity(0))
SETTLE_EVENTS = 20
"""Of each stream at a pace, not counted: all of them begin at once."""
EVENT_LOOP_MARK = "diptych/launch/front.py"
"""In every stack of the thread that does the work; the others wait."""
GROUPS = {
    "writing to sockets, and HTTP framing": ("uvicorn/",),
    "web framework": ("starlette/", "fastapi/", "frontend/middleware", "frontend/event_stream"),
    "events of the stream": ("frontend/openai/", "frontend/answering"),
    "tokens to text": ("frontend/text/", "frontend/answer.py"),
    "router": ("router/",),
    "messages from workers": ("wire/", "zmq/"),
    "event loop": ("asyncio/", "uvloop/", "launch/front"),
}
"""What a stack is spent on: the innermost frame that is in one of these files says."""


@dataclass(frozen=True, kw_only=True)
class FrontendOptions(Options):
    """Flags of this benchmark. `--engine` and `--modeled-time-scale` have no effect: the engine is always modeled."""

    num_streams: int = setting(64, "Streams at a time.")
    num_tokens: int = setting(1_000, "Tokens of each stream.")
    step_ms: float = setting(1.5, "Duration of the modeled steps of the second part.")
    profile_s: float = setting(5.0, "Seconds of the profile; 0: none.")


@dataclass(frozen=True, slots=True)
class Run:
    """One run of all streams."""

    tokens_per_s: float
    front_cpu_us: float
    """CPU time of the front process, a token."""
    gaps_s: list[float]
    events_share: float
    """Events a token: below 1 where several tokens came in one."""


def measure(options: FrontendOptions, progress: ProgressBar) -> Outcome:
    """Measure both parts, then profile."""
    progress.expect(3 * options.pairs + 1)
    nominal_s = SMOLLM2_135M_ONE_AVX2_CORE.step_s([(1, options.num_tokens // 2)] * options.num_streams)
    fast: list[Run] = []
    paced: list[Run] = []
    with _serving(options, 0.0) as (server, front_pid):
        for _ in range(options.pairs):
            with progress.part("as fast as it can"):
                fast.append(_run(server, front_pid, options))
        with progress.part("profile"):
            shares = _profile(server, front_pid, options) if options.profile_s else {}
    with _serving(options, options.step_ms / 1e3 / nominal_s) as (server, front_pid):
        for _ in range(options.pairs):
            with progress.part("at a pace"):
                paced.append(_run(server, front_pid, options))
    counting = _measure_counting(options, progress)
    findings = [*_findings(fast, paced, options), _counting_finding(counting, options)]
    return Outcome(findings, _samples(fast, paced, shares) | {"counting": counting}, notes=_notes(shares))


def _measure_counting(options: FrontendOptions, progress: ProgressBar) -> list[dict[str, float]]:
    """Return the CPU time a token of each pair, with metrics and without."""
    pairs: list[dict[str, float]] = []
    with _serving(options, 0.0) as counting, _serving(options, 0.0, has_metrics=False) as plain:
        sides = {"with": counting, "without": plain}
        for number in range(options.pairs):
            with progress.part("with and without metrics"):
                names = list(sides) if number % 2 == 0 else list(sides)[::-1]
                times = {name: _run(*sides[name], options).front_cpu_us for name in names}
                pairs.append({"with_us": times["with"], "without_us": times["without"]})
    return pairs


def _counting_finding(pairs: list[dict[str, float]], options: FrontendOptions) -> Finding:
    ratios = [pair["with_us"] / pair["without_us"] for pair in pairs]
    return Finding(
        what="CPU time a token with metrics, times that without",
        measured=estimate_median(ratios, options.seed),
        unit="",
        at_most=MAX_COUNTING_RATIO,
    )


@contextmanager
def _serving(
    options: FrontendOptions, scale: float, *, has_metrics: bool = True
) -> Iterator[tuple[diptych.Server, int]]:
    """Serve with the front process alone on one core."""
    cores = ALL_CORES
    os.sched_setaffinity(0, set(cores))  # beside another server this program has been moved off the first one
    others = set(tree_of(os.getpid()))
    config = diptych.ServeConfig(
        engine="modeled",
        modeled_time_scale=scale,
        port=0,
        kv_bytes=20 * MODELED_KV_BYTES,
        mixed=1,
        max_num_seqs=256,
        metrics=has_metrics,
    )
    with ExitStack() as stack:
        server = stack.enter_context(diptych.serve(config))
        processes = [pid for pid in tree_of(os.getpid()) if pid not in others]
        front = [pid for pid in processes if FRONT_MODULE in Path(f"/proc/{pid}/cmdline").read_bytes()]
        if len(front) != 1:
            raise BenchError("the front process was not found among this program's children")
        for pid in processes:
            _pin(pid, {cores[0]} if pid in front else set(cores[1:] or cores))
        os.sched_setaffinity(0, set(cores[1:] or cores))
        stack.callback(os.sched_setaffinity, 0, set(cores))
        yield server, front[0]


def _pin(pid: int, cores: set[int]) -> None:
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)


def _run(server: diptych.Server, front_pid: int, options: FrontendOptions) -> Run:
    before_s, begin_s = _cpu_s(front_pid), time.monotonic()
    streams = _streams(server, options, options.num_tokens)
    duration_s = time.monotonic() - begin_s
    num_tokens = options.num_streams * options.num_tokens
    cpu_us = (_cpu_s(front_pid) - before_s) / num_tokens * 1e6
    events_share = sum(stream.num_events for stream in streams) / num_tokens
    gaps_s = [gap for stream in streams for gap in _gaps(stream)]
    return Run(num_tokens / duration_s, cpu_us, gaps_s, events_share)


def _streams(server: diptych.Server, options: FrontendOptions, num_tokens: int) -> list[RawStream]:
    body: dict[str, Any] = {"model": server.model_name, "prompt": PROMPT, "max_tokens": num_tokens}
    return run_streams(server.url, body | {"temperature": 0, "ignore_eos": True}, options.num_streams)


def _gaps(stream: RawStream) -> list[float]:
    return [later - earlier for earlier, later in pairwise(stream.times_s[SETTLE_EVENTS:])]


def _cpu_s(pid: int) -> float:
    """Return the CPU time of a process, to the nanosecond where the kernel counts that finely."""
    tasks = Path(f"/proc/{pid}/task")
    try:
        return sum(int((task / "schedstat").read_text(encoding="utf-8").split()[0]) for task in tasks.iterdir()) / 1e9
    except OSError:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _profile(server: diptych.Server, front_pid: int, options: FrontendOptions) -> dict[str, float]:
    """Return what shares of the front process's time go into what; nothing if py-spy may not look."""
    with tempfile.TemporaryDirectory() as folder:
        stacks = Path(folder) / "stacks.txt"
        spy = [str(Path(sys.executable).with_name("py-spy")), "record", "--format", "raw", "--rate", "500"]
        command = [*spy, "--duration", f"{options.profile_s:.0f}", "--output", str(stacks), "--pid", str(front_pid)]
        outcome: list[int] = []
        thread = Thread(target=lambda: outcome.append(_call(command, options.profile_s + 30)))
        thread.start()
        while thread.is_alive():
            _streams(server, options, options.num_tokens)
        thread.join()
        if outcome != [0] or not stacks.exists():
            return {}
        return summarize_stacks(stacks.read_text(encoding="utf-8"))


def _call(command: list[str], timeout_s: float) -> int:
    try:
        return subprocess.run(command, capture_output=True, timeout=timeout_s, check=False).returncode
    except (OSError, subprocess.TimeoutExpired):
        return -1


def summarize_stacks(text: str) -> dict[str, float]:
    """Sum up the event loop's collapsed stacks (`outer;...;inner COUNT` a line) by what they are spent on."""
    counts: Counter[str] = Counter()
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        if EVENT_LOOP_MARK in stack:
            counts[_group_of(stack.split(";"))] += int(count)
    total = sum(counts.values())
    return {group: count / total for group, count in counts.most_common()} if total else {}


def _group_of(frames: list[str]) -> str:
    for frame in reversed(frames):
        for group, marks in GROUPS.items():
            if any(mark in frame for mark in marks):
                return group
    return "other"


def _findings(fast: list[Run], paced: list[Run], options: FrontendOptions) -> list[Finding]:
    def added_ms(run: Run) -> float:
        return (percentile(run.gaps_s, 99.0) - median(run.gaps_s)) * 1e3

    def estimate(values: list[float]) -> Any:
        return estimate_median(values, options.seed)

    streams = f"{options.num_streams} streams"
    return [
        Finding(
            what=f"tokens a second over {streams}, front process on one core",
            measured=estimate([run.tokens_per_s for run in fast]),
            unit="tokens/s",
            at_least=MIN_TOKENS_PER_S,
        ),
        Finding(what="CPU time of it a token", measured=estimate([run.front_cpu_us for run in fast]), unit="us"),
        Finding(what="events a token", measured=estimate([run.events_share for run in fast]), unit=""),
        Finding(
            what=f"at a pace, {streams}: tokens a second",
            measured=estimate([run.tokens_per_s for run in paced]),
            unit="tokens/s",
        ),
        Finding(
            what="p99 token gap beyond the median one, at that pace",
            measured=estimate([added_ms(run) for run in paced]),
            unit="ms",
            at_most=MAX_ADDED_GAP_MS,
        ),
        Finding(
            what="median token gap, at that pace",
            measured=estimate([median(run.gaps_s) * 1e3 for run in paced]),
            unit="ms",
        ),
        Finding(
            what="longest token gap of all", measured=single(max(max(run.gaps_s) for run in paced) * 1e3), unit="ms"
        ),
    ]


def _samples(fast: list[Run], paced: list[Run], shares: dict[str, float]) -> dict[str, Any]:
    def raw(run: Run) -> dict[str, Any]:
        points = (1.0, 10.0, 50.0, 90.0, 99.0, 99.9)
        gaps = {f"p{point:g}": percentile(run.gaps_s, point) for point in points}
        return {"tokens_per_s": run.tokens_per_s, "front_cpu_us": run.front_cpu_us, "gaps_s": gaps}

    return {
        "as_fast_as_it_can": [raw(run) for run in fast],
        "at_a_pace": [raw(run) for run in paced],
        "profile_shares": shares,
    }


def _notes(shares: dict[str, float]) -> list[str]:
    if not shares:
        return ["no profile: py-spy is not installed, or may not look into other processes here"]
    return ["what the front process spends its time on:"] + [
        f"  {share:4.0%}  {name}" for name, share in shares.items()
    ]


if __name__ == "__main__":
    run_program("frontend_speed", FrontendOptions, __doc__, measure)
