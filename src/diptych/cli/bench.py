"""`diptych bench`: load against any server that speaks OpenAI's API, and the goodput of several side by side."""

import signal
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from diptych.bench.completions import ApiRoute
from diptych.bench.measure import Bench, Method
from diptych.bench.record import Recorder, TargetFacts, explain_write_errors, load, new_result
from diptych.bench.report.figures import draw, require_matplotlib
from diptych.bench.report.page import write_page
from diptych.bench.report.words import RUN_HEADINGS, goodput_rows, run_rows, slo_text, verdicts, warnings
from diptych.bench.search import SearchLimits
from diptych.bench.summary import RunSummary
from diptych.bench.target import ApiOptions, Target
from diptych.cli.trace_file import read_trace_file
from diptych.core.config_sources import API_KEY_VARIABLE
from diptych.core.errors import ConfigError
from diptych.core.slo import Slo
from diptych.workload.named import WORKLOADS, SessionSource
from diptych.workload.trace import Trace

bench_app = typer.Typer(
    no_args_is_help=True,
    help="Measure servers: latencies at one rate, the goodput at given SLOs, or several servers side by side.",
    epilog="Start with `diptych bench compare`: is disaggregation worth it, on this machine, for chats?",
)

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_SERVERS = (
    "default=diptych serve",
    "strict=diptych serve --no-adaptive",
    "colocated=diptych serve --mixed 1 --no-adaptive",
)
DEFAULT_TPOTS_S = (0.05, 0.1)
FEWEST_REQUESTS = 10
"""Of a run: a sweep tries no rate that is so low that fewer would come."""
EXIT_INTERRUPTED = 130
LOG_COLUMNS = 200
_WORKLOADS_HELP = "; ".join(f"{workload.name}: {workload.description}" for workload in WORKLOADS.values())

TargetArgument = Annotated[
    str,
    typer.Argument(
        metavar="SERVER",
        help="An address, `diptych serve FLAGS` in quotes, or another command with {port} in it; NAME= may come first.",
    ),
]
WorkloadOption = Annotated[str, typer.Option("--workload", "-w", help=f"{_WORKLOADS_HELP}.")]
TraceOption = Annotated[
    Path | None, typer.Option("--trace", help="Replay this trace (Mooncake's JSON lines) in place of a workload.")
]
ScaleOption = Annotated[float, typer.Option("--scale", min=0.001, help="Times all lengths, also those of a trace.")]
MaxTokensOption = Annotated[
    int | None, typer.Option("--max-tokens", min=2, help="Leave out rows of a trace with more tokens (after scaling).")
]
BurstinessOption = Annotated[
    float,
    typer.Option(
        "--burstiness", min=0.01, help="Shape of the gaps between arrivals: 1 Poisson, less for bursts, inf for none."
    ),
]
SloOption = Annotated[
    list[str] | None,
    typer.Option(
        "--slo", help="TTFT and TPOT, such as 1s,50ms. Several times for several. \\[default: the workload's]"
    ),
]
DurationOption = Annotated[float, typer.Option("--duration-s", min=1, help="Seconds of a run.")]
PatienceOption = Annotated[float, typer.Option("--patience-s", min=1, help="A client gives up after so many seconds.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Decides arrivals, lengths and texts.")]
RouteOption = Annotated[str, typer.Option("--route", help="`completions` or `chat`.")]
ModelOption = Annotated[str | None, typer.Option("--model", "-m", help="\\[default: the first that the server lists]")]
KeyOption = Annotated[
    str | None,
    typer.Option("--api-key", envvar=[API_KEY_VARIABLE, "OPENAI_API_KEY"], help="For servers with keys."),
]
CaOption = Annotated[
    Path | None, typer.Option("--ca-cert", help="Trust these certificates (PEM) and no others, for https addresses.")
]
EosOption = Annotated[
    bool,
    typer.Option("--ignore-eos/--respect-eos", help="Whether answers get the planned length, or end where they end."),
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder for results. \\[default: bench-results/DATE-TIME]")
]
ReportOption = Annotated[bool, typer.Option("--report/--no-report", help="Whether to draw figures and write a page.")]
PrecisionOption = Annotated[
    float, typer.Option("--precision", min=0.01, max=1.0, help="How narrowly to search, as a share of the rate.")
]
StartRateOption = Annotated[float, typer.Option("--start-rate", min=0.01, help="Requests a second to begin with.")]
StartTimeoutOption = Annotated[float, typer.Option("--start-timeout-s", min=1, help="For servers that are started.")]


@bench_app.command("run")
def run_command(  # noqa: PLR0913, PLR0917  one parameter a flag
    context: typer.Context,
    server: TargetArgument = DEFAULT_URL,
    rate: Annotated[float, typer.Option("--rate", "-r", min=0.001, help="Requests a second.")] = 1.0,
    workload: WorkloadOption = "chat",
    trace: TraceOption = None,
    scale: ScaleOption = 1.0,
    max_tokens: MaxTokensOption = None,
    burstiness: BurstinessOption = 1.0,
    slo: SloOption = None,
    duration_s: DurationOption = 60.0,
    patience_s: PatienceOption = 60.0,
    seed: SeedOption = 0,
    route: RouteOption = "completions",
    model: ModelOption = None,
    api_key: KeyOption = None,
    ca_cert: CaOption = None,
    ignore_eos: EosOption = True,
    start_timeout_s: StartTimeoutOption = 300.0,
    output: OutputOption = None,
    report: ReportOption = True,
) -> None:
    """Offer one load and show the latencies."""
    job = _Job("run", [server], context.params)

    async def measure(bench: Bench) -> None:
        (target,) = job.targets
        async with target.serving(job.api_options, start_timeout_s) as api:
            bench.recorder.on_model(target.name, api.model)
            await bench.run(api, target.name, rate, seed)

    job.do(measure)


@bench_app.command("sweep")
def sweep_command(  # noqa: PLR0913, PLR0917
    context: typer.Context,
    server: TargetArgument = DEFAULT_URL,
    workload: WorkloadOption = "chat",
    trace: TraceOption = None,
    scale: ScaleOption = 1.0,
    max_tokens: MaxTokensOption = None,
    burstiness: BurstinessOption = 1.0,
    slo: SloOption = None,
    start_rate: StartRateOption = 1.0,
    precision: PrecisionOption = 0.1,
    duration_s: DurationOption = 60.0,
    patience_s: PatienceOption = 60.0,
    seed: SeedOption = 0,
    route: RouteOption = "completions",
    model: ModelOption = None,
    api_key: KeyOption = None,
    ca_cert: CaOption = None,
    ignore_eos: EosOption = True,
    start_timeout_s: StartTimeoutOption = 300.0,
    output: OutputOption = None,
    report: ReportOption = True,
) -> None:
    """Search a server's goodput: the highest rate at which 90 % of the requests meet an SLO."""
    job = _Job("sweep", [server], context.params)

    async def measure(bench: Bench) -> None:
        await bench.compare(job.targets, [seed], job.api_options, start_timeout_s)

    job.do(measure)


@bench_app.command("compare")
def compare_command(  # noqa: PLR0913, PLR0917
    context: typer.Context,
    servers: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SERVER...",
            help="As for `sweep`, two or more; ratios are over the last. "
            "\\[default: `diptych serve` as it is, with phases strictly apart, and colocated]",
        ),
    ] = None,
    workload: WorkloadOption = "chat",
    trace: TraceOption = None,
    scale: ScaleOption = 1.0,
    max_tokens: MaxTokensOption = None,
    burstiness: BurstinessOption = 1.0,
    slo: SloOption = None,
    start_rate: StartRateOption = 1.0,
    precision: PrecisionOption = 0.1,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many rounds, each with a seed of its own.")] = 3,
    duration_s: DurationOption = 45.0,
    patience_s: PatienceOption = 60.0,
    seed: SeedOption = 0,
    route: RouteOption = "completions",
    model: ModelOption = None,
    api_key: KeyOption = None,
    ca_cert: CaOption = None,
    ignore_eos: EosOption = True,
    start_timeout_s: StartTimeoutOption = 300.0,
    output: OutputOption = None,
    report: ReportOption = True,
) -> None:
    """Search the goodput of several servers, in turn, on the same loads; say how many times the load each carries."""
    named = servers or list(DEFAULT_SERVERS)
    job = _Job("compare", named, context.params)

    async def measure(bench: Bench) -> None:
        await bench.compare(job.targets, range(seed, seed + seeds), job.api_options, start_timeout_s)

    job.do(measure)


@bench_app.command("report")
def report_command(
    folder: Annotated[Path, typer.Argument(help="Where `run`, `sweep` or `compare` left its results.")],
) -> None:
    """Draw the figures and write the page of an earlier measurement anew."""
    require_matplotlib()
    result = load(folder)
    with explain_write_errors(folder):
        page = write_page(result, folder, draw(result, folder))
    typer.echo(str(page))


class _Job:
    """One command's measurement, from its flags to its report. Whatever can be wrong with flags is said at once."""

    def __init__(self, command: str, servers: list[str], flags: dict[str, Any]) -> None:
        self._with_report = flags["report"]
        if self._with_report:
            require_matplotlib()
        self.targets = [Target.parse(server) for server in servers]
        if len({target.name for target in self.targets}) < len(self.targets):
            raise ConfigError("two servers have the same name; name them: NAME=SERVER")
        self.api_options = ApiOptions(
            _route(flags["route"]), flags["ignore_eos"], flags["model"], flags["api_key"], flags["ca_cert"]
        )
        source = _source_of(flags)
        slos = [Slo.parse(text) for text in flags["slo"] or ()] or source.slos
        if len(set(slos)) < len(slos):
            raise ConfigError("an SLO is given twice")
        self.targets = [target.planning_for(slos) for target in self.targets]
        limits = SearchLimits(
            start_per_s=flags.get("start_rate", 1.0),
            precision=flags.get("precision", 0.1),
            lowest_per_s=FEWEST_REQUESTS / flags["duration_s"],
        )
        self._method = Method(source.sessions, slos, flags["duration_s"], flags["patience_s"], limits)
        shown = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in flags.items()
            if name not in {"server", "servers", "slo", "output", "report", "api_key", "ca_cert"}
            and not (name == "workload" and flags["trace"] is not None)
        }
        facts = [TargetFacts(target.name, target.description) for target in self.targets]
        folder = flags["output"] or Path("bench-results") / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        result = new_result(f"diptych bench {command}", shown, source.name, list(slos), facts)
        self._recorder = Recorder(folder, result)

    def do(self, measure: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
        """Measure, then report what there is, also after Ctrl-C or SIGTERM: servers that were started are ended."""
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
        console = Console(stderr=True)
        is_interrupted = False
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            bench = Bench(self._method, self._recorder, _ProgressLines(progress))
            try:
                uvloop.run(measure(bench))
            except KeyboardInterrupt:
                is_interrupted = True
        self._recorder.result.is_complete = not is_interrupted
        self._recorder.save()
        self._show()
        if is_interrupted:
            sys.exit(EXIT_INTERRUPTED)

    def _show(self) -> None:
        result, folder = self._recorder.result, self._recorder.folder
        console = Console()
        if not console.is_terminal:
            console = Console(width=LOG_COLUMNS)
        if not result.runs:
            typer.echo("nothing was measured")
            return
        headings = [*RUN_HEADINGS, *(str(slo) for slo in result.slos)]
        console.print(_table(headings, list(run_rows(result))))
        if result.sweeps:
            console.print(_table(["server", "SLO", "goodput", "brackets", "ratio"], list(goodput_rows(result))))
        for line in [*verdicts(result), *warnings(result)]:
            console.print(line, markup=False)
        if self._with_report:
            with explain_write_errors(folder):
                page = write_page(result, folder, draw(result, folder))
            console.print(f"report: {page}", markup=False)
        console.print(f"results: {folder}", markup=False)


@dataclass(frozen=True, slots=True)
class _Source:
    name: str
    sessions: SessionSource
    slos: list[Slo]


def _source_of(flags: dict[str, Any]) -> _Source:
    """Return the load that flags ask for. Raises: ConfigError."""
    path, name, scale, burstiness = flags["trace"], flags["workload"], flags["scale"], flags["burstiness"]
    if path is not None and burstiness != 1.0:
        raise ConfigError("--burstiness is for workloads; a trace has its own arrivals")
    if path is None and flags["max_tokens"] is not None:
        raise ConfigError("--max-tokens leaves out rows of a trace; give one with --trace")
    if path is not None:
        trace = Trace(read_trace_file(path), scale, flags["max_tokens"])
        return _Source(f"trace {path.name}", trace.sessions, [Slo(1.0, tpot_s) for tpot_s in DEFAULT_TPOTS_S])
    if name not in WORKLOADS:
        raise ConfigError(f"there is no workload {name!r}; choose one of {', '.join(WORKLOADS)}")
    workload = WORKLOADS[name].scaled(scale)

    def sessions(rate_per_s: float, seed: int) -> Any:
        return workload.sessions(rate_per_s, seed, burstiness)

    return _Source(name, sessions, [Slo(workload.slo_ttft_s, tpot_s) for tpot_s in DEFAULT_TPOTS_S])


def _route(name: str) -> ApiRoute:
    if name == "chat":
        return "chat"
    if name == "completions":
        return "completions"
    raise ConfigError(f"--route is completions or chat, not {name!r}")


class _ProgressLines:
    """Shows how far it is: a bar for the running run, a line for each that has ended."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=None)

    def on_stage(self, text: str) -> None:
        """Show what happens now."""
        self._progress.reset(self._task, description=text, total=None)

    def on_ended(self, num_ended: int, num_expected: int) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=num_ended, total=max(num_expected, num_ended))

    def on_run(self, target: str, seed: int, summary: RunSummary) -> None:
        """Leave a line."""
        shares = "; ".join(f"{found.share:.0%} within {slo_text(found.slo)}" for found in summary.attainments)
        text = f"{target}, seed {seed}: {summary.rate_per_s:.3g} requests/s: {shares or 'done'}"
        self._progress.console.print(text, markup=False, highlight=False)


def _table(headings: list[str], rows: list[list[str]]) -> Table:
    table = Table(*headings, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row)
    return table
