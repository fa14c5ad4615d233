"""`diptych plan --here`: how many workers to start on this machine."""

import json
import os
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import asdict
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from diptych.core.config_sources import load_config
from diptych.core.errors import ConfigError
from diptych.core.slo import Slo
from diptych.hardware.host import host_facts
from diptych.hardware.profile import Profile, read_profile
from diptych.launch.cores import usable_cores
from diptych.models import default_cache_dir, resolve, stderr_progress
from diptych.models.description import describe
from diptych.planner.here import LocalVerdict, Machine, search_here, serve_toml
from diptych.planner.load import Load
from diptych.planner.search import OnProgress
from diptych.workload.named import WORKLOADS, Workload

USUAL_TPOT_S = 0.05
BYTES_OF_16_BITS = {"f32": 2.0, "bf16": 1.0, "f16": 1.0, "u8": 0.5}
"""What a number in the cache takes, over what one of 16 bits does, by its precision."""
SHOWN = 10

Run = Callable[[Callable[[Executor, OnProgress], list[LocalVerdict]]], list[LocalVerdict]]
"""Runs a search with processes and a progress bar."""


def local_workload(name: str) -> Workload:
    """Return a workload of a small model's sizes.

    Raises: ConfigError naming those that there are.
    """
    if name not in WORKLOADS:
        raise ConfigError(f"there is no workload {name!r} for --here; choose one of {', '.join(WORKLOADS)}")
    return WORKLOADS[name]


def this_machine(model: str | None, profile_path: Path | None) -> Machine:
    """Return what is known of this machine and model.

    Raises: ConfigError if it has not been calibrated.
    """
    config = load_config({"model": model}, os.environ, None)
    folder = resolve(config.model, progress=stderr_progress())
    profile = read_profile(profile_path) if profile_path is not None else _newest_profile(folder.key, folder.name)
    if profile.model_key != folder.key:
        raise ConfigError(f"the profile is of {profile.model_name}, not of these weights of {folder.name}")
    bytes_a_token = describe(config.model).kv_bytes_per_token
    if bytes_a_token is None:
        raise ConfigError(f"the files of {folder.name} do not say how large its KV is, so nothing can be planned")
    precision = next((name for name in BYTES_OF_16_BITS if name in profile.engine.split()), "bf16")
    return Machine(
        profile=profile,
        num_cores=len(usable_cores(config.cores)),
        config=config,
        kv_bytes_a_token=bytes_a_token * BYTES_OF_16_BITS[precision],
    )


def _newest_profile(model_key: str, name: str) -> Profile:
    cpu = host_facts().cpu_model
    found = [read_profile(path) for path in sorted((default_cache_dir() / "profiles").glob(f"{model_key}-*.json"))]
    fitting = [profile for profile in found if profile.cpu == cpu]
    if not fitting:
        raise ConfigError(f"{name} has not been measured on this machine; run `diptych calibrate --model {name}` first")
    return max(fitting, key=lambda profile: profile.measured_at)


def plan_here(machine: Machine, load: Load, slo: Slo, run: Run, *, is_json: bool) -> str:
    """Search, show the ranking, return the best as TOML.

    Raises: ConfigError if nothing meets the SLO.
    """
    verdicts = run(lambda executor, on_progress: search_here(machine, load, slo, executor, on_progress))
    if is_json:
        typer.echo(json.dumps(_as_json(machine, slo, verdicts), indent=2))
    else:
        _show(machine, slo, verdicts)
    if not verdicts[0].goodput.per_s:
        raise ConfigError(f"no arrangement of {machine.num_cores} cores meets {slo}; allow a more generous SLO")
    return serve_toml(machine, verdicts[0], slo)


def _as_json(machine: Machine, slo: Slo, verdicts: list[LocalVerdict]) -> dict[str, object]:
    return {
        "is_simulated": True,
        "model": machine.profile.model_name,
        "num_cores": machine.num_cores,
        "profile": machine.profile.measured_at,
        "slo_ttft_s": slo.ttft_s,
        "slo_tpot_s": slo.tpot_s,
        "arrangements": [{**asdict(one.arrangement), **asdict(one.goodput)} for one in verdicts],
    }


def _show(machine: Machine, slo: Slo, verdicts: list[LocalVerdict]) -> None:
    table = Table(*("", "workers", "cores each", "requests/s", "TTFT P90", "TPOT P90"), box=None, pad_edge=False)
    for rank, verdict in enumerate(verdicts[:SHOWN], 1):
        goodput = verdict.goodput
        limits = (f"{goodput.ttft_p90_s:.3f} s", f"{goodput.tpot_p90_s * 1e3:.1f} ms") if goodput.per_s else ("-", "-")
        cores_each = machine.num_cores // verdict.arrangement.num_workers
        table.add_row(str(rank), str(verdict.arrangement), str(cores_each), f"{goodput.per_s:.2f}", *limits)
    console = Console()
    console.print(
        f"{machine.profile.model_name} within {slo} on {machine.num_cores} cores, by the profile of "
        f"{machine.profile.measured_at[:10]}; all figures are [bold]simulated[/bold]"
    )
    console.print(table)
