"""`diptych plan`: what to build, before buying it."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from diptych.cli.plan_here import USUAL_TPOT_S, local_workload, plan_here, this_machine
from diptych.cli.trace_file import read_trace_file
from diptych.core.errors import ConfigError
from diptych.core.slo import Slo
from diptych.core.whole_file import write_whole
from diptych.hardware.estimate import CostSource, estimate_worker
from diptych.hardware.models import MODELS, find_model
from diptych.hardware.specs import DEVICES, find_device, find_link
from diptych.planner.answers import as_json, as_toml, ranking_table
from diptych.planner.load import Load
from diptych.planner.picture import draw
from diptych.planner.question import Objective, PlanQuestion
from diptych.planner.search import OnProgress, Plan, search
from diptych.workload.datasets import DATASETS, find_dataset, usual_slo
from diptych.workload.named import Workload
from diptych.workload.trace import Trace

WANTED, BUILD, LOAD, ANSWER = "What is wanted", "What there is to build from", "The load", "The answer"
DEFAULT_MODEL = "llama-3-8b"
LOG_COLUMNS = 200
Answer = TypeVar("Answer")
TRACE_SLO = Slo(1.0, 0.1)


def plan_command(  # noqa: PLR0913, PLR0917  one parameter a flag
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help=f"By its shape: {', '.join(MODELS)}. With --here: as for `diptych serve`. "
            f"\\[default: {DEFAULT_MODEL}]",
            rich_help_panel=WANTED,
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(help="Requests/s to carry at the least price. \\[default: all that fits]", rich_help_panel=WANTED),
    ] = None,
    objective: Annotated[
        Objective, typer.Option(help="What goodput is divided by, or a --rate is priced in.", rich_help_panel=WANTED)
    ] = "per-gpu",
    slo_ttft_s: Annotated[
        float | None,
        typer.Option(min=0.001, help="Seconds to the first token. \\[default: the workload's]", rich_help_panel=WANTED),
    ] = None,
    slo_tpot_s: Annotated[
        float | None, typer.Option(min=0.001, help="Seconds a token after the first.", rich_help_panel=WANTED)
    ] = None,
    hardware: Annotated[
        str,
        typer.Option(metavar="LIST", help=f"Kinds of devices: {', '.join(DEVICES)}.", rich_help_panel=BUILD),
    ] = "h100",
    nodes: Annotated[int, typer.Option(min=1, help="Nodes at most, of all kinds.", rich_help_panel=BUILD)] = 4,
    gpus_per_node: Annotated[int, typer.Option(min=1, max=64, rich_help_panel=BUILD)] = 8,
    link: Annotated[
        str, typer.Option(help="Between nodes: 25gbps to 3200gbps, one such link a node.", rich_help_panel=BUILD)
    ] = "400gbps",
    costs: Annotated[
        CostSource,
        typer.Option(
            help="Where step times come from; auto: fitted by others where they have, else computed from spec sheets.",
            rich_help_panel=BUILD,
        ),
    ] = "auto",
    here: Annotated[
        bool,
        typer.Option(
            "--here", help="Plan for this machine's cores, by what `diptych calibrate` has left.", rich_help_panel=BUILD
        ),
    ] = False,
    profile: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --here: another profile than the newest.", rich_help_panel=BUILD),
    ] = None,
    workload: Annotated[
        str, typer.Option("--workload", "-w", help=f"{', '.join(DATASETS)}.", rich_help_panel=LOAD)
    ] = "chat",
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A recording (Mooncake's JSON lines) instead.", rich_help_panel=LOAD),
    ] = None,
    prefix_hit_rate: Annotated[
        float, typer.Option(help="Share of each prompt that all have in common.", rich_help_panel=LOAD)
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of arrivals and lengths.", rich_help_panel=LOAD)] = 0,
    as_json_text: Annotated[
        bool, typer.Option("--json", help="Everything that was found, as JSON.", rich_help_panel=ANSWER)
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Best placement as TOML.", rich_help_panel=ANSWER),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Goodput by price as PNG.", rich_help_panel=ANSWER)
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Simulations at a time. \\[default: one a core]", rich_help_panel=ANSWER),
    ] = None,
) -> None:
    """Find what to build for a load: how many prefill, decode or mixed workers, of how many GPUs each.

    Every candidate that could meet the SLO is simulated at rising rates, with the router and policies of the live
    server; the best combinations are then simulated as a whole. Goodput is the highest rate at which 90 % of the
    requests keep to both limits. Nothing here is measured: step times are computed from spec sheets, or fitted by
    others, as the answer says.

    Examples:

      diptych plan --model opt-13b --hardware a100-80g --link 25gbps

      diptych plan -m llama-3-70b --hardware h100,l40s --objective per-dollar --rate 20 -o plan.toml
    """
    num_processes = processes or len(os.sched_getaffinity(0))
    wanted = _Limits(slo_ttft_s, slo_tpot_s)
    if here:
        if rate is not None or plot is not None or trace is not None:
            raise ConfigError("--here finds the most that this machine carries: leave --rate, --plot and --trace out")
        source = local_workload(workload)
        toml = plan_here(
            this_machine(model, profile),
            Load(source=source, hit_rate=prefix_hit_rate, seed=seed),
            wanted.over(Slo(source.slo_ttft_s, USUAL_TPOT_S)),
            lambda find: _in_parallel(find, num_processes),
            is_json=as_json_text,
        )
    else:
        shape = find_model(model or DEFAULT_MODEL)
        usual = TRACE_SLO if trace is not None else usual_slo(find_dataset(workload), shape.name)
        question = PlanQuestion(
            model=shape,
            devices=tuple(find_device(name.strip()) for name in hardware.split(",")),
            num_nodes=nodes,
            gpus_per_node=gpus_per_node,
            network=find_link(link),
            load=Load(source=_source(workload, trace), hit_rate=prefix_hit_rate, seed=seed),
            slo=wanted.over(usual),
            rate_per_s=rate,
            objective=objective,
            costs=costs,
        )
        toml = _plan_cluster(question, num_processes, plot, is_json=as_json_text)
    if output is not None:
        _write(output, toml)


class _Limits(NamedTuple):
    """What was asked for of an SLO."""

    ttft_s: float | None
    tpot_s: float | None

    def over(self, usual: Slo) -> Slo:
        """Return it with what was not asked for as usual."""
        return Slo(self.ttft_s or usual.ttft_s, self.tpot_s or usual.tpot_s)


def _plan_cluster(question: PlanQuestion, num_processes: int, plot: Path | None, *, is_json: bool) -> str:
    if plot is not None:
        _require_matplotlib()
    plan = _in_parallel(
        lambda executor, on_progress: search(question, executor, on_progress, num_processes), num_processes
    )
    if is_json:
        typer.echo(json.dumps(as_json(plan), indent=2))
    else:
        _show(plan)
    if not plan.verdicts:
        raise ConfigError(_nothing_found(question))
    if plot is not None:
        draw(plan, plot)
    return as_toml(plan, plan.verdicts[0])


def _require_matplotlib() -> None:
    if find_spec("matplotlib") is None:
        raise ConfigError("pictures need matplotlib: pip install 'diptych[bench]', or leave --plot out")


def _source(workload: str, trace: Path | None) -> Workload | Trace:
    return find_dataset(workload) if trace is None else Trace(read_trace_file(trace))


def _in_parallel(find: Callable[[Executor, OnProgress], Answer], num_processes: int) -> Answer:
    """Run a search with processes of its own and a progress bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    context = multiprocessing.get_context("spawn")
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting", total=None)

        def on_progress(title: str, num_done: int, num_all: int) -> None:
            progress.update(task, description=title, completed=num_done, total=num_all)

        with ProcessPoolExecutor(num_processes, mp_context=context, initializer=_leave_interrupts) as executor:
            try:
                return find(executor, on_progress)
            except BaseException:
                executor.shutdown(wait=False, cancel_futures=True)
                raise


def _leave_interrupts() -> None:
    """Let Ctrl-C be the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _show(plan: Plan) -> None:
    console = Console()
    terminal = console if console.is_terminal else Console(width=LOG_COLUMNS)
    question = plan.question
    terminal.print(
        f"{question.model.name} within {question.slo}, {question.num_nodes} nodes of {question.gpus_per_node}, "
        f"{question.network.name} between them; all figures are [bold]simulated[/bold]",
    )
    terminal.print(ranking_table(plan))
    sources = {estimate_worker(part.group.shape, part.group.role, question.costs).source for part in plan.parts}
    terminal.print(f"step times: {'; '.join(sorted(sources))}", markup=False)
    reasons = ", ".join(f"{count} x {reason}" for reason, count in plan.left_out.most_common() if count)
    terminal.print(f"{len(plan.parts)} kinds of workers simulated; left out: {reasons or 'none'}", markup=False)


def _nothing_found(question: PlanQuestion) -> str:
    what = "meets the SLO as a whole" if question.rate_per_s is None else f"carries {question.rate_per_s:g} requests/s"
    return f"nothing that fits into {question.num_gpus} GPUs {what}; allow more --nodes, or a more generous SLO"


def _write(path: Path, text: str) -> None:
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise ConfigError(f"cannot write the plan {path}: {error.strerror}") from None
