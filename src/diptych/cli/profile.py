"""`diptych profile`: where the time of a running server's workers goes."""

import json
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from diptych.cli.status import DEFAULT_URL, ApiKey, CaCert, Url, remote_of
from diptych.core.errors import ConfigError
from diptych.core.whole_file import write_whole
from diptych.launch.server import Remote, fetch_status, order_worker

MOST_S = 600.0
ANSWER_GRACE_S = 20.0
ACTIVITIES = ("engine", "sampling", "scheduling", "messaging", "cache", "idle")
Stacks = dict[str, int]
"""How often each was seen; `activity;frame;...;frame`, the innermost last."""


def profile_command(  # noqa: PLR0913, PLR0917  one parameter a flag
    seconds: Annotated[float, typer.Argument(min=0.1, max=MOST_S, help="How long to look.")],
    worker: Annotated[
        list[str] | None, typer.Option("--worker", help="Which one, such as decode-0; repeatable [default: all].")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write all stacks to this file: for speedscope.app, or folded if it ends in .txt."
        ),
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    ca_cert: CaCert = None,
) -> None:
    """Say where workers spend their time: engine, sampling, scheduling, messaging, cache, or idle.

    Each looks at its own threads a hundred times a second, which costs it about one percent meanwhile. Time in which a
    step runs is the engine's, whatever the worker's loop does beside it.
    """
    console, remote = Console(stderr=True), remote_of(url, api_key, ca_cert)
    names = worker or list(fetch_status(remote)["workers"])
    with console.status(f"looking at {', '.join(names)} for {seconds:g} s"), ThreadPoolExecutor(len(names)) as pool:
        seen = dict(zip(names, pool.map(lambda name: _sample(remote, name, seconds), names), strict=True))
    Console().print(_table({name: stacks for name, (stacks, _) in seen.items()}))
    if output is not None:
        _write(output, seen)
        console.print(
            f"stacks are in {output}" + ("" if output.suffix == ".txt" else "; https://speedscope.app shows them")
        )


def _sample(remote: Remote, worker: str, seconds: float) -> tuple[Stacks, float]:
    """Return the stacks of a worker, and the time between two looks."""
    answer = order_worker(remote, worker, "profile", {"seconds": seconds}, seconds + ANSWER_GRACE_S)
    return answer["stacks"], answer["interval_s"]


def shares_of(stacks: Stacks) -> dict[str, float]:
    """Return the share of each activity."""
    counts: Counter[str] = Counter()
    for line, count in stacks.items():
        counts[line.partition(";")[0]] += count
    total = counts.total()
    return {activity: counts[activity] / total if total else 0.0 for activity in ACTIVITIES}


def _table(seen: Mapping[str, Stacks]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("time goes to", no_wrap=True)
    for name in seen:
        table.add_column(name, no_wrap=True, justify="right")
    shares = {name: shares_of(stacks) for name, stacks in seen.items()}
    for activity in ACTIVITIES:
        table.add_row(activity, *(f"{shares[name][activity]:.1%}" for name in seen))
    table.add_row("looks", *(str(sum(stacks.values())) for stacks in seen.values()))
    return table


def _write(path: Path, seen: Mapping[str, tuple[Stacks, float]]) -> None:
    """Write all stacks. Raises: ConfigError if that is not possible."""
    if path.suffix == ".txt":
        lines = [f"{name};{line} {count}" for name, (stacks, _) in seen.items() for line, count in stacks.items()]
        text = "\n".join(lines) + "\n"
    else:
        text = json.dumps(speedscope_of(seen))
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def speedscope_of(seen: Mapping[str, tuple[Stacks, float]]) -> dict[str, Any]:
    """Return a file of speedscope's format: a profile a worker, weights in seconds."""
    numbers: dict[str, int] = {}
    profiles: list[dict[str, Any]] = []
    for name, (stacks, interval_s) in seen.items():
        samples = [[numbers.setdefault(frame, len(numbers)) for frame in line.split(";")] for line in stacks]
        weights = [count * interval_s for count in stacks.values()]
        profiles.append(
            {
                "type": "sampled",
                "name": name,
                "unit": "seconds",
                "startValue": 0,
                "endValue": sum(weights),
                "samples": samples,
                "weights": weights,
            }
        )
    return {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "exporter": "diptych profile",
        "name": "diptych",
        "shared": {"frames": [{"name": frame} for frame in numbers]},
        "profiles": profiles,
    }
