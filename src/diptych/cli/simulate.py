"""`diptych simulate`: what a cluster would do with a load, before anyone buys it."""

import itertools
import json
import math
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from diptych.cli.trace_file import read_trace_file
from diptych.core.errors import ConfigError
from diptych.sim.assembly import cluster_plan
from diptych.sim.chrome import ChromeTrace
from diptych.sim.cluster import SimulatedCluster
from diptych.sim.config import read_config
from diptych.sim.events import EventLog
from diptych.sim.offered import offered_by_sessions
from diptych.sim.outcome import RequestOutcome
from diptych.sim.plan import ClusterPlan
from diptych.sim.prompts import OfferedRequest
from diptych.sim.summary import Gatherer, Latency, Summary
from diptych.sim.timeline import Timeline
from diptych.workload.named import WORKLOADS
from diptych.workload.session import Session
from diptych.workload.trace import Trace

EXIT_INTERRUPTED = 130
DEFAULT_DURATION_S = 300.0
SAMPLES = 600
"""Of queues, over the whole time, for the picture."""
SHOW_EVERY = 50
"""Requests between two looks at the progress bar."""


@dataclass(frozen=True)
class _Load:
    """What is offered."""

    name: str
    sessions: Iterator[Session]
    until_s: float
    num_expected: int | None
    """Requests; None: not known."""


def simulate_command(  # noqa: PLR0913, PLR0917  one parameter a flag
    config: Annotated[
        Path, typer.Option("--config", "-c", help="The cluster, in TOML; examples/simulate.toml is one.")
    ],
    trace: Annotated[
        Path | None, typer.Option("--trace", help="Replay this trace (Mooncake's JSON lines, also .gz), or give:")
    ] = None,
    workload: Annotated[
        str | None, typer.Option("--workload", "-w", help=f"One of {', '.join(WORKLOADS)}; needs --rate.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", "-r", min=0.001, help="Requests a second. \\[default: the trace's own]")
    ] = None,
    duration_s: Annotated[
        float | None,
        typer.Option("--duration-s", min=0.001, help="No request comes later. \\[default: the trace's end, or 300]"),
    ] = None,
    scale: Annotated[float, typer.Option("--scale", min=0.001, help="Times all lengths.")] = 1.0,
    burstiness: Annotated[
        float, typer.Option("--burstiness", min=0.01, help="Of a workload's gaps: 1 Poisson, less for bursts.")
    ] = 1.0,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Decides arrivals, lengths, chance in routing, failures.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything, for programs.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Draw a timeline of workers and queues into this file.")
    ] = None,
    chrome_trace: Annotated[
        Path | None, typer.Option("--chrome-trace", help="Write every step, for chrome://tracing or ui.perfetto.dev.")
    ] = None,
    events: Annotated[
        Path | None, typer.Option("--events", help="Write everything that happens, one JSON object a line.")
    ] = None,
) -> None:
    """Serve a load on a cluster that is not there, in virtual time.

    The router, its policies and the prefix caches are the live ones; workers take as long as a cost model says (specs
    of hardware, or the profile that `diptych calibrate` has written). docs/simulator.md says what is modeled, what is
    not, and how far that is from real runs. Ctrl-C ends early and tells of what has been simulated.

    diptych simulate --config examples/simulate.toml --workload chat --rate 40 --html timeline.html

    diptych simulate --config examples/simulate.toml --trace traces/mooncake-conversation-1000.jsonl
    """
    load = _load_of(trace, workload, rate, duration_s, scale, burstiness, seed)
    plan = cluster_plan(read_config(config), config.parent, seed, load.until_s)
    cluster, gatherer, timeline = SimulatedCluster(plan), Gatherer(plan), Timeline(plan)
    cluster.observe(gatherer.on_event)
    with ExitStack() as stack:
        page = None if html is None else stack.enter_context(_opened(html))
        if page is not None:
            cluster.observe(timeline)
            span_s = load.until_s if math.isfinite(load.until_s) else DEFAULT_DURATION_S
            cluster.sample_every(span_s / SAMPLES, timeline.on_samples)
        if chrome_trace is not None:
            cluster.observe(ChromeTrace(stack.enter_context(_opened(chrome_trace)), plan))
        if events is not None:
            cluster.observe(EventLog(stack.enter_context(_opened(events))))
        offered = offered_by_sessions(load.sessions, plan.block_size)
        was_interrupted = _serve(cluster, offered, gatherer, load.num_expected)
        summary = gatherer.summary(cluster.sent_bytes)
        if page is not None:
            page.write(timeline.page(f"{load.name} on {config.name}", summary).encode())
    if as_json:
        typer.echo(json.dumps(msgspec.to_builtins(summary), indent=2))
    else:
        _print(summary, plan)
        for path in (html, chrome_trace, events):
            if path is not None:
                typer.echo(f"written: {path}", err=True)
    if was_interrupted:
        typer.echo("interrupted: this is what had been simulated", err=True)
        raise typer.Exit(EXIT_INTERRUPTED)


def _load_of(  # noqa: PLR0913, PLR0917  the flags
    trace: Path | None,
    workload: str | None,
    rate: float | None,
    duration_s: float | None,
    scale: float,
    burstiness: float,
    seed: int,
) -> _Load:
    """Return what the flags ask for. Raises: ConfigError."""
    if (trace is None) == (workload is None):
        raise ConfigError("say what to offer: --trace FILE, or --workload NAME with --rate")
    if trace is not None:
        recorded = Trace(read_trace_file(trace), scale)
        num_rows, rate_per_s = recorded.num_rows, rate or recorded.recorded_rate_per_s
        sessions = recorded.sessions(rate_per_s, seed)
        if duration_s is None:
            return _Load(trace.name, itertools.islice(sessions, num_rows), math.inf, num_rows)
        return _Load(trace.name, sessions, duration_s, _expected(rate_per_s, duration_s))
    found = WORKLOADS.get(workload or "")
    if found is None:
        raise ConfigError(f"--workload: there is no {workload!r}; there are {', '.join(WORKLOADS)}")
    if rate is None:
        raise ConfigError("--workload needs --rate: how many requests a second")
    until_s = duration_s or DEFAULT_DURATION_S
    sessions = found.scaled(scale).sessions(rate, seed, burstiness)
    return _Load(f"{found.name} at {rate:g}/s", sessions, until_s, _expected(rate, until_s))


def _expected(rate_per_s: float, duration_s: float) -> int | None:
    return round(rate_per_s * duration_s) if math.isfinite(rate_per_s) else None


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("wb")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def _serve(
    cluster: SimulatedCluster, offered: Iterator[OfferedRequest], gatherer: Gatherer, num_expected: int | None
) -> bool:
    """Serve, with a progress bar; tell whether Ctrl-C has ended it."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task("requests", total=num_expected)

        def on_outcome(outcome: RequestOutcome) -> None:
            gatherer.on_outcome(outcome)
            if gatherer.num_ended % SHOW_EVERY == 0:
                progress.update(task, completed=gatherer.num_ended)

        try:
            cluster.serve(offered, on_outcome)
        except KeyboardInterrupt:
            return True
    return False


# What people read


def _print(summary: Summary, plan: ClusterPlan) -> None:
    console = Console()
    console.print(f"{summary.num_requests:,} requests in {summary.duration_s:,.1f} simulated seconds" + _ends(summary))
    for reason, number in summary.failures.items():
        console.print(f"{number:,} failed: {reason}")
    latencies = Table("", "mean", "p50", "p90", "p99", box=None, pad_edge=False)
    for name, latency in (("TTFT", summary.ttft), ("TPOT", summary.tpot)):
        latencies.add_row(name, *_cells(latency))
    console.print(latencies)
    slo = summary.slo
    console.print(
        f"SLO {slo}: {summary.attainment:.1%} of requests; goodput {summary.goodput_per_s:.3g} requests/s, "
        f"{summary.output_tokens_per_s:,.0f} output tokens/s"
    )
    pools = Table("pool", "workers", "busy", "answers a step", "prompt tok/s", "output tok/s", box=None, pad_edge=False)
    for pool in summary.pools:
        pools.add_row(
            pool.name,
            f"{pool.num_workers:,}",
            f"{pool.busy_share:.0%}",
            f"{pool.mean_answers:.1f}",
            f"{pool.prompt_tokens_per_s:,.0f}",
            f"{pool.output_tokens_per_s:,.0f}",
        )
    console.print(pools)
    console.print(_caches(summary, plan))
    if summary.usd_per_hour:
        per_token = summary.usd_per_million_tokens
        text = "" if per_token is None else f", ${per_token:,.2f} a million output tokens"
        console.print(f"cost: ${summary.usd_per_hour:,.2f} an hour{text}")


def _ends(summary: Summary) -> str:
    parts = [
        f"{number:,} {name}"
        for number, name in ((summary.num_refused, "refused"), (summary.num_failed, "failed"))
        if number
    ]
    return f" ({', '.join(parts)})" if parts else ""


def _caches(summary: Summary, plan: ClusterPlan) -> str:
    text = f"caches: {summary.hit_rate:.1%} of prompt tokens were not computed"
    if plan.tier is not None:
        text += f", {summary.loaded_share:.1%} were loaded from below memory"
    if summary.num_preemptions:
        text += f"; {summary.num_preemptions:,} preemptions"
    if summary.num_migrations:
        text += f"; {summary.num_migrations:,} answers went on after a worker's death"
    if plan.link is not None:
        text += f"; {summary.sent_bytes / 1e9:,.1f} GB of KV sent"
    return text


def _cells(latency: Latency) -> list[str]:
    return [_duration(value) for value in (latency.mean_s, latency.p50_s, latency.p90_s, latency.p99_s)]


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
