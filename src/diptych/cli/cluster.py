"""`diptych cluster`: the machines that serve together."""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from diptych.cli.status import DEFAULT_URL, ApiKey, CaCert, Url, remote_of, workers_table
from diptych.core.addresses import HEAD_NODE
from diptych.launch.server import fetch_status, order_node

TEXTS = ("node", "state", "address", "version", "engine")
NUMBERS = ("cores", "workers", "requests", "KV", "silent", "away", "clock")
EXPENDABLE = ("version", "engine", "KV", "cores", "away")
"""Columns that a narrow terminal does without, the first one first; `--json` has them all."""

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
    console.print(nodes_table(status, console.width))
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


def nodes_table(status: dict[str, Any], width: int) -> Table:
    """Return a table of `ClusterStatus` as JSON, a row a machine; the router's own comes first.

    It leaves out what `EXPENDABLE` names as far as it is wider than `width` characters.
    """
    by_node: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for info in status["workers"].values():
        by_node[info["address"]["node"] or HEAD_NODE].append(info)
    own = by_node[HEAD_NODE]
    rows = [{"node": HEAD_NODE, "state": status["health"], "cores": _num_cores(own), **_counts(own)}]
    rows += [_node_row(name, node, by_node[name]) for name, node in status["nodes"].items()]
    headings = [*TEXTS, *NUMBERS]
    for heading in EXPENDABLE:
        if _width(headings, rows) <= width:
            break
        headings.remove(heading)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for heading in headings:
        table.add_column(heading, no_wrap=True, justify="left" if heading in TEXTS else "right")
    for row in rows:
        table.add_row(*(row.get(heading, "-") for heading in headings))
    return table


def _width(headings: Sequence[str], rows: Sequence[dict[str, str]]) -> int:
    """Return how many characters the longest cells take, with one between two of them."""
    widest = [max(len(heading), *(len(row.get(heading, "-")) for row in rows)) for heading in headings]
    return sum(widest) + len(widest) - 1


def _node_row(name: str, node: dict[str, Any], workers: list[dict[str, Any]]) -> dict[str, str]:
    return {
        "node": name,
        "state": node["state"],
        "address": node["address"],
        "version": node["version"],
        "engine": node["engine"],
        "cores": str(node["num_cores"]),
        **_counts(workers),
        "KV": f"{node['segment_bytes'] / 1e9:.2f} GB",
        "silent": f"{node['silent_s']:.1f} s",
        "away": f"{1000 * node['round_trip_s']:.2f} ms",
        "clock": f"{node['clock_offset_s']:+.3f} s",
    }


def _num_cores(workers: list[dict[str, Any]]) -> str:
    return str(len({core for info in workers for core in info["status"]["cores"]}))


def _counts(workers: list[dict[str, Any]]) -> dict[str, str]:
    """Return how many workers take requests, and how many requests they have."""
    num_ready = sum(info["status"]["state"] == "ready" for info in workers)
    return {"workers": f"{num_ready}/{len(workers)}", "requests": str(sum(info["num_assigned"] for info in workers))}
