"""`diptych status`: what each worker of a running server is doing."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from diptych.core.config_sources import API_KEY_VARIABLE
from diptych.frontend.tls import client_tls
from diptych.launch.server import Remote, fetch_status

DEFAULT_URL = "http://127.0.0.1:8000"
Url = Annotated[str, typer.Option("--url", help="Where the server listens.")]
ApiKey = Annotated[
    str | None, typer.Option("--api-key", envvar=API_KEY_VARIABLE, help="An admin key, for servers with keys.")
]
CaCert = Annotated[Path | None, typer.Option("--ca-cert", help="Trust these certificates (PEM) and no others.")]


def status_command(
    url: Url = DEFAULT_URL,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything, for programs.")] = False,
    api_key: ApiKey = None,
    ca_cert: CaCert = None,
) -> None:
    """Show each worker's process, cores, state and blocks."""
    status = fetch_status(remote_of(url, api_key, ca_cert))
    if as_json:
        typer.echo(json.dumps(status, indent=2))
        return
    console = Console()
    console.print(workers_table(status))
    for worker_id, info in status["workers"].items():
        if info["outlook"]:
            console.print(f"{worker_id}: {info['outlook']}")
        if num_damaged := info["status"]["num_damaged_blocks"]:
            console.print(f"{worker_id}: met {num_damaged} KV blocks that were written astray; its log names them")
    elsewhere = f", and {status['num_elsewhere']} with other frontends" if status["num_elsewhere"] else ""
    num_requests = status["num_requests"]
    console.print(f"{status['model']}: {status['health']}, {num_requests} requests running or waiting{elsewhere}")


def remote_of(url: str, api_key: str | None, ca_cert: Path | None) -> Remote:
    """Return the server that a command line names."""
    return Remote(url, api_key, True if ca_cert is None else client_tls(ca_cert))


def workers_table(status: dict[str, Any]) -> Table:
    """Return a table of `ClusterStatus` as JSON, a row a worker, that fits into 80 columns.

    Roles are left out, since names begin with them; what is on disk is told by `diptych cache`.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for heading in ("worker", "pid", "cores", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in ("run", "wait", "blocks", "free", "cached", "hits", "MB"):
        table.add_column(heading, no_wrap=True, justify="right")
    for worker_id, info in status["workers"].items():
        worker = info["status"]
        table.add_row(
            worker_id,
            str(worker["pid"] or "-"),
            cores_text(worker["cores"]),
            worker["state"],
            *(str(worker[key]) for key in ("num_running", "num_waiting")),
            *(str(worker[key]) for key in ("num_blocks", "num_free_blocks", "num_cached_blocks")),
            _hits(worker["cache"]),
            f"{worker['memory_bytes'] / 1e6:.0f}",
        )
    return table


def share_text(part: int, whole: int) -> str:
    """Return a part of a whole in percent; a dash of nothing."""
    return f"{part / whole:.0%}" if whole else "-"


def _hits(cache: dict[str, Any] | None) -> str:
    """Return the share of prompt tokens that were found in memory or loaded."""
    if cache is None:
        return "-"
    return share_text(cache["num_memory_tokens"] + cache["num_tier_tokens"], cache["num_asked_tokens"])


def cores_text(cores: list[int]) -> str:
    """Write runs of cores as `0-3,6`."""
    runs: list[list[int]] = []
    for core in sorted(cores):
        if runs and core == runs[-1][-1] + 1:
            runs[-1].append(core)
        else:
            runs.append([core])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
