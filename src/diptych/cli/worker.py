"""`diptych worker`: this machine's workers serve for a router on another one."""

import os
import re
import socket
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from diptych.cli.serve import CLUSTER, LIMITS, MEMORY, MODEL, WATCHING, WORKERS, StopSignals, setting_option
from diptych.core.bounds import NODE_NAME
from diptych.core.config_sources import load_config
from diptych.core.errors import ConfigError
from diptych.core.ids import NodeId
from diptych.core.logs import configure_logging
from diptych.launch.node import Node, StartedNode
from diptych.models import stderr_progress
from diptych.wire.border import HostPort
from diptych.wire.cluster_keys import read_node_keys

SIGNAL_POLL_S = 0.2
NAME_VARIABLE = "DIPTYCH_NODE"


def worker_command(  # noqa: PLR0913, PLR0917  one parameter a flag
    join: Annotated[
        str, typer.Option("--join", metavar="HOST:PORT", help="The router's --cluster-listen.", rich_help_panel=CLUSTER)
    ],
    keys: Annotated[
        Path,
        typer.Option("--keys", metavar="DIR", help="This machine's keys (`diptych keys`).", rich_help_panel=CLUSTER),
    ],
    node: Annotated[
        str | None,
        typer.Option(
            "--node",
            envvar=NAME_VARIABLE,
            help="What to call this machine. \\[default: its host name]",
            rich_help_panel=CLUSTER,
        ),
    ] = None,
    join_timeout_s: Annotated[
        float,
        typer.Option(min=1, help="Seconds that the router may be out of reach at the start.", rich_help_panel=CLUSTER),
    ] = 60.0,
    ready_file: Annotated[
        Path | None,
        typer.Option(
            "--ready-file", metavar="FILE", help="Is there while the machine has joined.", rich_help_panel=CLUSTER
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Where the router's model is on this machine. \\[default: as the router calls it]",
            rich_help_panel=MODEL,
        ),
    ] = None,
    prefill: Annotated[int | None, setting_option("prefill", WORKERS)] = None,
    decode: Annotated[int | None, setting_option("decode", WORKERS)] = None,
    mixed: Annotated[int | None, setting_option("mixed", WORKERS)] = None,
    cores: Annotated[str | None, setting_option("cores", WORKERS, metavar="LIST")] = None,
    kv_bytes: Annotated[str | None, setting_option("kv_bytes", MEMORY, metavar="SIZE")] = None,
    disk_kv_bytes: Annotated[str | None, setting_option("disk_kv_bytes", MEMORY, metavar="SIZE")] = None,
    disk_kv_dir: Annotated[Path | None, setting_option("disk_kv_dir", MEMORY, metavar="DIR")] = None,
    transfer_host: Annotated[str | None, setting_option("transfer_host", CLUSTER, metavar="HOST")] = None,
    profile: Annotated[Path | None, setting_option("profile", MODEL, metavar="FILE")] = None,
    drain_timeout_s: Annotated[float | None, setting_option("drain_timeout_s", LIMITS)] = None,
    start_timeout_s: Annotated[float | None, setting_option("start_timeout_s", LIMITS)] = None,
    log_format: Annotated[str | None, setting_option("log_format", WATCHING, metavar="NAME")] = None,
    log_level: Annotated[str | None, setting_option("log_level", WATCHING, metavar="NAME")] = None,
) -> None:
    """Serve with this machine's workers for a router on another one (`diptych serve --cluster-listen`).

    What is served, and how, the router's machine says; the flags here are this machine's own. If the router ends, the
    workers wait until one is there again. Ctrl-C or SIGTERM lets running answers end, or go on elsewhere, and leaves; a
    second one ends at once.
    """
    own = {
        "model": model,
        "prefill": prefill,
        "decode": decode,
        "mixed": mixed,
        "cores": None if cores is None else [part.strip() for part in cores.split(",")],
        "kv_bytes": kv_bytes,
        "disk_kv_bytes": disk_kv_bytes,
        "disk_kv_dir": disk_kv_dir,
        "transfer_host": transfer_host,
        "profile": profile,
        "drain_timeout_s": drain_timeout_s,
        "start_timeout_s": start_timeout_s,
        "log_format": log_format,
        "log_level": log_level,
    }
    log = load_config({"log_format": log_format, "log_level": log_level}, {}, None).log
    configure_logging("agent", log)
    console, signals = Console(stderr=True, quiet=log.format == "json"), StopSignals()
    machine = Node(_node_name(node), HostPort.parse(join, "--join"), read_node_keys(keys), own)
    with console.status("starting") as spinner:
        started = machine.start(join_timeout_s, stderr_progress(), spinner.update)
    signals.on_ready()
    _introduce(console, started, join)
    try:
        while not signals.is_end_asked and not machine.wait(SIGNAL_POLL_S):
            _mark(ready_file, is_ready=machine.is_in)
        _mark(ready_file, is_ready=False)
        console.print("leaving: running answers end, or go on elsewhere; Ctrl-C again ends at once")
        machine.stop()
    except BaseException:
        _mark(ready_file, is_ready=False)
        machine.kill()
        raise


def _mark(file: Path | None, *, is_ready: bool) -> None:
    """Have the file there, or not. Raises: ConfigError."""
    if file is None:
        return
    try:
        file.touch() if is_ready else file.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"--ready-file: cannot write {file}: {error.strerror}") from None


def _node_name(given: str | None) -> NodeId:
    name = given if given is not None else os.environ.get("HOSTNAME") or socket.gethostname()
    if given is None:
        name = re.sub(r"[^a-z0-9-]", "-", name.partition(".")[0].lower()).strip("-")
    assert NODE_NAME.pattern is not None and NODE_NAME.max_length is not None
    if not name or not re.fullmatch(NODE_NAME.pattern, name) or len(name) > NODE_NAME.max_length:
        raise ConfigError(
            f"{name!r} cannot be a machine's name: set --node to one of a-z, 0-9 and - in between, of "
            f"{NODE_NAME.max_length} characters at most"
        )
    return NodeId(name)


def _introduce(console: Console, started: StartedNode, router: str) -> None:
    workers = ", ".join(started.cores.workers)
    console.print(
        f"ready after {started.ready_after_s:.1f} s; {router} is {1000 * started.round_trip_s:.1f} ms away; step times "
        f"are predicted from {started.costs_source}"
    )
    typer.echo(f"{started.node} has joined {router} with {workers}")
