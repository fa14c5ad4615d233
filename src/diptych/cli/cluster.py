"""`diptych cluster`: the machines that serve together."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from diptych.cli.status import DEFAULT_URL, ApiKey, CaCert, Url, remote_of, workers_table
from diptych.launch.server import fetch_status, order_node

cluster_app = typer.Typer(help="See and change which machines serve together.", no_args_is_help=True)


@cluster_app.command("status")
def status_command(
    url: Url = DEFAULT_URL,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything, for programs.")] = False,
    api_key: ApiKey = None,
    ca_cert: CaCert = None,
) -> None:
    """Show each machine's state, and its workers'."""
    status = fetch_status(remote_of(url, api_key, ca_cert))
    if as_json:
        typer.echo(json.dumps({"nodes": status["nodes"], "workers": status["workers"]}, indent=2))
        return
    console = Console()
    console.print(nodes_table(status))
    console.print()
    console.print(workers_table(status))
    for worker_id, info in status["workers"].items():
        if info["outlook"]:
            console.print(f"{worker_id}: {info['outlook']}")


@cluster_app.command("drain")
def drain_command(
    node: Annotated[str, typer.Argument(help="A machine that has joined; `diptych cluster status` lists them.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    ca_cert: CaCert = None,
) -> None:
    """Have a machine leave: its answers end, or go on elsewhere, then its `diptych worker` ends. Returns at once."""
    order_node(remote_of(url, api_key, ca_cert), node, "drain")
    Console(stderr=True).print(f"{node} is leaving")


def nodes_table(status: dict[str, Any]) -> Table:
    """Return a table of `ClusterStatus` as JSON, a row a machine; the router's own comes first."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for heading in ("node", "state", "address", "version", "engine"):
        table.add_column(heading, no_wrap=True)
    for heading in ("cores", "workers", "requests", "KV", "silent", "away", "clock"):
        table.add_column(heading, no_wrap=True, justify="right")
    workers = status["workers"].values()
    by_node: dict[str, list[dict[str, Any]]] = {"": [], **{name: [] for name in status["nodes"]}}
    for info in workers:
        by_node.setdefault(info["address"]["node"].replace("head", ""), []).append(info)
    own = by_node.pop("")
    table.add_row("head", status["health"], "-", "-", "-", _num_cores(own), *_counts(own), "-", "-", "-", "-")
    for name, node in status["nodes"].items():
        table.add_row(
            name,
            node["state"],
            node["address"],
            node["version"],
            node["engine"],
            str(node["num_cores"]),
            *_counts(by_node.get(name, [])),
            f"{node['segment_bytes'] / 1e9:.2f} GB",
            f"{node['silent_s']:.1f} s",
            f"{1000 * node['round_trip_s']:.2f} ms",
            f"{node['clock_offset_s']:+.3f} s",
        )
    return table


def _num_cores(workers: list[dict[str, Any]]) -> str:
    return str(len({core for info in workers for core in info["status"]["cores"]}))


def _counts(workers: list[dict[str, Any]]) -> tuple[str, str]:
    """Return how many workers take requests, and how many requests they have."""
    num_ready = sum(info["status"]["state"] == "ready" for info in workers)
    return f"{num_ready}/{len(workers)}", str(sum(info["num_assigned"] for info in workers))
