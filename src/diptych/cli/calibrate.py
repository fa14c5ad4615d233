"""`diptych calibrate`: measure this machine once, so that predictions are made from its own numbers."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from diptych.calibrate.measure import MeasuredCosts, measure_costs, measure_handover, measure_interference
from diptych.core.config import ServeConfig
from diptych.core.config_sources import load_config
from diptych.core.cost_model import CostModel
from diptych.hardware.host import host_facts, software_versions
from diptych.hardware.profile import Interference, Profile, profile_path, write_profile
from diptych.launch.cores import usable_cores
from diptych.models import default_cache_dir, resolve, stderr_progress

TARGET_MEAN, TARGET_WORST = 0.05, 0.15
QUICK_ROUNDS, ROUNDS = 1, 5


def calibrate_command(  # noqa: PLR0913, PLR0917  one parameter a flag
    model: Annotated[str | None, typer.Option("--model", "-m", help="As for `diptych serve`.")] = None,
    cores: Annotated[str | None, typer.Option("--cores", metavar="LIST", help="Cores to use, such as 0,1.")] = None,
    engine: Annotated[str | None, typer.Option("--engine", help="As for `diptych serve`.")] = None,
    kv_dtype: Annotated[str | None, typer.Option("--kv-dtype", help="As for `diptych serve`.")] = None,
    kv_bytes: Annotated[
        str | None, typer.Option("--kv-bytes", metavar="SIZE", help="Larger steps are left out. \\[default: 1GB]")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="How often each step is measured.")] = ROUNDS,
    quick: Annotated[bool, typer.Option("--quick", help="One round, in a fifth of the time.")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Decides which steps are held back.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File. \\[default: the cache, where `diptych serve` looks]")
    ] = None,
) -> None:
    """Measure how long this machine takes for a model's steps, and keep it as a profile.

    Step times by tokens, context and batch; workers beside each other; the hand-over. A cost model is fitted to the
    steps, and its error is told on steps that it has not seen. `diptych serve` then predicts from this profile which
    worker reads a prompt soonest and how many tokens fit into a step. Leave the machine alone meanwhile.
    """
    flags = {
        "model": model,
        "cores": None if cores is None else [part.strip() for part in cores.split(",")],
        "engine": engine,
        "kv_dtype": kv_dtype,
        "kv_bytes": kv_bytes,
    }
    config = load_config(flags, os.environ, None)
    folder = resolve(config.model, progress=stderr_progress())
    usable = usable_cores(config.cores)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting")

        def on_progress(title: str, done: int, total: int) -> None:
            progress.update(task, description=title, completed=done, total=total)

        measured = [
            measure_costs(config, usable[-num_cores:], QUICK_ROUNDS if quick else rounds, seed, on_progress)
            for num_cores in _core_counts(len(usable))
        ]
        interference, handover_s = None, None
        if len(usable) > 1:
            half = len(usable) // 2
            interference = measure_interference(config, usable[:half], usable[half:], on_progress)
            handover_s = measure_handover(config, on_progress)
    cpu = host_facts().cpu_model
    profile = Profile(
        model_name=folder.name,
        model_key=folder.key,
        engine=measured[0].engine,
        cpu=cpu,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=software_versions(),
        workers=[found.worker for found in measured],
        interference=interference,
        handover_s=handover_s,
    )
    path = output or profile_path(default_cache_dir(), folder.key, measured[0].engine, cpu)
    write_profile(profile, path)
    _show(measured, interference, handover_s, path)


def _core_counts(num_cores: int) -> Iterator[int]:
    """Yield 1, 2, 4 and so on, and all cores."""
    count = 1
    while count < num_cores:
        yield count
        count *= 2
    yield num_cores


def _show(
    measured: list[MeasuredCosts], interference: Interference | None, handover_s: float | None, path: Path
) -> None:
    table = Table("", *(_cores_text(found) for found in measured), box=None, pad_edge=False)
    rows: list[tuple[str, list[tuple[int, int]]]] = [
        ("decode step, 1 answer at context 256", [(1, 256)]),
        ("decode step, 8 answers", [(1, 256)] * 8),
        ("decode step, 32 answers", [(1, 256)] * 32),
        ("prompt of 256 tokens", [(256, 0)]),
    ]
    for title, rows_ in rows:
        table.add_row(title, *(f"{found.worker.costs.step_s(rows_) * 1e3:.1f} ms" for found in measured))
    table.add_row("prompt of 2,000 tokens", *(_prompt_text(found.worker.costs) for found in measured))
    changes = (f"+{found.worker.costs.change_s * 1e3:.1f} ms" for found in measured)
    table.add_row("a step of another shape than the last", *changes)
    for title, at in (("mean", "mean"), ("worst", "worst")):
        errors = [getattr(found.worker.error, at) for found in measured]
        table.add_row(f"{title} error on unseen steps", *(f"{error:.1%}" for error in errors))
    console = Console()
    console.print(table)
    if interference is not None:
        console.print(
            f"beside a busy worker: decode steps take {interference.decode_factor:.2f} times as long, "
            f"prompts {interference.prefill_factor:.2f} times"
        )
    if handover_s is not None:
        console.print(f"hand-over: {handover_s * 1e3:.2f} ms from the first token to the step that goes on")
    for found in measured:
        error = found.worker.error
        if error.mean > TARGET_MEAN or error.worst > TARGET_WORST:
            console.print(
                f"[yellow]the fit for {_cores_text(found)} is off by more than {TARGET_MEAN:.0%} on average or "
                f"{TARGET_WORST:.0%} at worst; was the machine busy? Try again, with more --rounds[/yellow]"
            )
    console.print(f"profile: {path}", markup=False, soft_wrap=True)


def _cores_text(found: MeasuredCosts) -> str:
    return f"{found.worker.num_cores} core{'s' if found.worker.num_cores > 1 else ''}"


def _prompt_text(costs: CostModel) -> str:
    return f"{costs.prefill_s(2_000, 0, ServeConfig().chunk_tokens) * 1e3:.0f} ms"
