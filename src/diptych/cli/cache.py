"""`diptych cache`: what KV a running server holds, where, and what it was good for; and removing what is on disk."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from diptych.cli.status import DEFAULT_URL, ApiKey, CaCert, Url, remote_of, share_text
from diptych.launch.disk_kv import default_disk_kv_dir
from diptych.launch.server import fetch_status
from diptych.tiers.clearing import clear_disk_kv

cache_app = typer.Typer(help="Show what KV is held, in memory and below.", invoke_without_command=True)


@cache_app.callback()
def cache_command(
    context: typer.Context,
    url: Url = DEFAULT_URL,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything, for programs.")] = False,
    api_key: ApiKey = None,
    ca_cert: CaCert = None,
) -> None:
    """Show what each worker of a running server has cached, in memory and below, and what that was good for."""
    if context.invoked_subcommand is not None:
        return
    workers = fetch_status(remote_of(url, api_key, ca_cert))["workers"]
    caches = {name: info["status"]["cache"] for name, info in workers.items() if info["status"]["cache"] is not None}
    if as_json:
        typer.echo(json.dumps(caches, indent=2))
        return
    console = Console()
    console.print(memory_table(caches))
    tiers = [(name, tier) for name, cache in caches.items() for tier in cache["tiers"]]
    if tiers:
        console.print()
        console.print(tier_table(tiers))
    for name, tier in tiers:
        console.print(f"{name}: {tier['name']}, {tier['state']}" + (f": {tier['trouble']}" if tier["trouble"] else ""))


@cache_app.command("clear")
def clear_command(
    folder: Annotated[
        Path | None,
        typer.Option(
            "--disk-kv-dir", envvar="DIPTYCH_DISK_KV_DIR", help="As for `diptych serve`. \\[default: the same]"
        ),
    ] = None,
) -> None:
    """Remove the KV that servers have left on disk. What a running server uses stays."""
    root = (folder or default_disk_kv_dir()).expanduser().absolute()
    cleared = clear_disk_kv(root)
    typer.echo(f"removed {cleared.num_files} files, {cleared.num_bytes / 1e9:.2f} GB, from {root}")
    if cleared.num_in_use:
        typer.echo(f"{cleared.num_in_use} folders are in use by running servers and stay", err=True)


def memory_table(caches: dict[str, dict[str, Any]]) -> Table:
    """Return a row for each worker's own blocks; `caches`: `CacheStatus` as JSON, by worker."""
    table = _table("worker", "blocks cached", "bytes", "asked tokens", "in memory", "below", "evicted", "lost")
    for name, cache in caches.items():
        table.add_row(
            name,
            str(cache["num_findable_blocks"]),
            _gigabytes(cache["num_findable_blocks"] * cache["block_bytes"]),
            str(cache["num_asked_tokens"]),
            share_text(cache["num_memory_tokens"], cache["num_asked_tokens"]),
            share_text(cache["num_tier_tokens"], cache["num_asked_tokens"]),
            str(cache["num_evicted_blocks"]),
            str(cache["num_lost_blocks"]) if cache["tiers"] else "-",
        )
    return table


def tier_table(tiers: Sequence[tuple[str, dict[str, Any]]]) -> Table:
    """Return a row for each worker's view of each tier below; `tiers`: workers, and `TierStatus` as JSON."""
    table = _table("worker", "tier", "blocks", "bytes", "limit", "stored", "loaded", "evicted", "gone", "bad", "failed")
    for name, tier in tiers:
        counts = ("stored", "loaded", "evicted", "missing", "corrupt")
        has_limit = bool(tier["limit_bytes"])
        table.add_row(
            name,
            tier["kind"],
            str(tier["num_blocks"]),
            _gigabytes(tier["used_bytes"]) if has_limit else "-",
            _gigabytes(tier["limit_bytes"]) if has_limit else "-",
            *(str(tier[f"num_{count}_blocks"]) for count in counts),
            str(tier["num_failures"]),
        )
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, no_wrap=True, justify="right")
    return table


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
