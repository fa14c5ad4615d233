"""`diptych serve`: start, say where, wait, end in order."""

import os
import signal
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from diptych.cli.status import workers_table
from diptych.core.config import ServeConfig
from diptych.core.config_sources import API_KEY_VARIABLE, LIST_SETTINGS, load_config
from diptych.core.errors import LaunchError
from diptych.core.logs import configure_logging
from diptych.core.machine_groups import read_machine_groups
from diptych.core.streams import take_stdout_error
from diptych.launch.server import Server, serve
from diptych.models import stderr_progress

SIGNAL_POLL_S = 0.2
API, WORKERS, MEMORY, LIMITS, MODEL = "API", "Workers", "KV cache", "Limits", "Model and engine"
WATCHING = "Watching it"
CLUSTER = "Cluster"


def setting_option(field: str, panel: str, *names: str, metavar: str | None = None) -> Any:
    """Return the option for a field of `ServeConfig`, with the field's own help and default."""
    info = ServeConfig.model_fields[field]
    default = "" if info.default in (None, "", []) else f" [default: {info.default}]"
    text = escape(f"{info.description}{default}")  # square brackets mean styles to typer
    flag = field.replace("_", "-")
    return typer.Option(
        f"--{flag}/--no-{flag}" if info.annotation is bool else f"--{flag}",
        *names,
        help=text,
        rich_help_panel=panel,
        metavar=metavar,
    )


def serve_command(  # noqa: PLR0913, PLR0917  one parameter a flag
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", envvar="DIPTYCH_CONFIG", help="TOML file with any of these settings.")
    ] = None,
    model: Annotated[str | None, setting_option("model", MODEL, "-m")] = None,
    host: Annotated[str | None, setting_option("host", API)] = None,
    port: Annotated[int | None, setting_option("port", API, "-p")] = None,
    frontends: Annotated[int | None, setting_option("frontends", API)] = None,
    root_path: Annotated[str | None, setting_option("root_path", API, metavar="PATH")] = None,
    cors_origins: Annotated[str | None, setting_option("cors_origins", API, metavar="LIST")] = None,
    api_keys: Annotated[Path | None, setting_option("api_keys", API, metavar="FILE")] = None,
    allow_unauthenticated: Annotated[bool | None, setting_option("allow_unauthenticated", API)] = None,
    tls_cert: Annotated[Path | None, setting_option("tls_cert", API, metavar="FILE")] = None,
    tls_key: Annotated[Path | None, setting_option("tls_key", API, metavar="FILE")] = None,
    chat_template: Annotated[Path | None, setting_option("chat_template", API, metavar="FILE")] = None,
    prefill: Annotated[int | None, setting_option("prefill", WORKERS)] = None,
    decode: Annotated[int | None, setting_option("decode", WORKERS)] = None,
    mixed: Annotated[int | None, setting_option("mixed", WORKERS)] = None,
    cores: Annotated[str | None, setting_option("cores", WORKERS, metavar="LIST")] = None,
    engine: Annotated[str | None, setting_option("engine", MODEL)] = None,
    modeled_time_scale: Annotated[float | None, setting_option("modeled_time_scale", MODEL)] = None,
    kv_dtype: Annotated[str | None, setting_option("kv_dtype", MEMORY)] = None,
    kv_bytes: Annotated[str | None, setting_option("kv_bytes", MEMORY, metavar="SIZE")] = None,
    disk_kv_bytes: Annotated[str | None, setting_option("disk_kv_bytes", MEMORY, metavar="SIZE")] = None,
    disk_kv_dir: Annotated[Path | None, setting_option("disk_kv_dir", MEMORY, metavar="DIR")] = None,
    kv_store: Annotated[str | None, setting_option("kv_store", MEMORY, metavar="URL")] = None,
    max_model_len: Annotated[int | None, setting_option("max_model_len", MEMORY)] = None,
    max_num_seqs: Annotated[int | None, setting_option("max_num_seqs", MEMORY)] = None,
    chunk_tokens: Annotated[int | None, setting_option("chunk_tokens", WORKERS)] = None,
    decode_chunk_tokens: Annotated[int | None, setting_option("decode_chunk_tokens", WORKERS)] = None,
    local_prefill_max_tokens: Annotated[int | None, setting_option("local_prefill_max_tokens", WORKERS)] = None,
    adaptive: Annotated[bool | None, setting_option("adaptive", WORKERS)] = None,
    slo_ttft_s: Annotated[float | None, setting_option("slo_ttft_s", WORKERS)] = None,
    slo_tpot_s: Annotated[float | None, setting_option("slo_tpot_s", WORKERS)] = None,
    routing: Annotated[str | None, setting_option("routing", WORKERS, metavar="NAME")] = None,
    routing_temperature: Annotated[float | None, setting_option("routing_temperature", WORKERS)] = None,
    balancing_threshold: Annotated[float | None, setting_option("balancing_threshold", WORKERS)] = None,
    admission: Annotated[str | None, setting_option("admission", LIMITS, metavar="NAME")] = None,
    eviction: Annotated[str | None, setting_option("eviction", MEMORY, metavar="NAME")] = None,
    profile: Annotated[Path | None, setting_option("profile", MODEL, metavar="FILE")] = None,
    exact: Annotated[bool | None, setting_option("exact", MEMORY)] = None,
    kv_checksums: Annotated[bool | None, setting_option("kv_checksums", MEMORY)] = None,
    cluster_listen: Annotated[str | None, setting_option("cluster_listen", CLUSTER, metavar="HOST:PORT")] = None,
    cluster_keys: Annotated[Path | None, setting_option("cluster_keys", CLUSTER, metavar="DIR")] = None,
    cluster: Annotated[str | None, setting_option("cluster", CLUSTER, metavar="ADDRESS")] = None,
    cluster_strategy: Annotated[str | None, setting_option("cluster_strategy", CLUSTER, metavar="NAME")] = None,
    kv_transport: Annotated[str | None, setting_option("kv_transport", CLUSTER, metavar="NAME")] = None,
    transfer_host: Annotated[str | None, setting_option("transfer_host", CLUSTER, metavar="HOST")] = None,
    node_timeout_s: Annotated[float | None, setting_option("node_timeout_s", CLUSTER)] = None,
    request_timeout_s: Annotated[float | None, setting_option("request_timeout_s", LIMITS)] = None,
    queue_timeout_s: Annotated[float | None, setting_option("queue_timeout_s", LIMITS)] = None,
    grant_timeout_s: Annotated[float | None, setting_option("grant_timeout_s", LIMITS)] = None,
    client_timeout_s: Annotated[float | None, setting_option("client_timeout_s", LIMITS)] = None,
    drain_timeout_s: Annotated[float | None, setting_option("drain_timeout_s", LIMITS)] = None,
    start_timeout_s: Annotated[float | None, setting_option("start_timeout_s", LIMITS)] = None,
    max_queue: Annotated[int | None, setting_option("max_queue", LIMITS)] = None,
    max_connections: Annotated[int | None, setting_option("max_connections", LIMITS)] = None,
    metrics: Annotated[bool | None, setting_option("metrics", WATCHING)] = None,
    log_format: Annotated[str | None, setting_option("log_format", WATCHING, metavar="NAME")] = None,
    log_level: Annotated[str | None, setting_option("log_level", WATCHING, metavar="NAME")] = None,
    slow_request_s: Annotated[float | None, setting_option("slow_request_s", WATCHING)] = None,
) -> None:
    """Serve a model over OpenAI's API.

    By default one prefill and one decode worker share this machine's cores. Every flag is also a key of --config FILE
    and an environment variable (DIPTYCH_PORT=8001); flags win over the environment, the environment over the file.
    DIPTYCH_API_KEY, if it is set, is a key that requests must bring, besides those of --api-keys.

    Ctrl-C or SIGTERM finishes running answers and ends; a second one ends at once.
    """
    # Every parameter but these two is a setting of the same name.
    flags = {name: value for name, value in context.params.items() if name != "config"}
    for name in LIST_SETTINGS:
        if flags[name] is not None:
            flags[name] = [part.strip() for part in flags[name].split(",")]
    settings = load_config(flags, os.environ, config)
    configure_logging("launcher", settings.log)
    # Where the log is for programs, so is all of stderr; what people are told stands in the log as well.
    console = Console(stderr=True, quiet=settings.log_format == "json")
    signals = StopSignals()
    with console.status("starting") as spinner:
        server = serve(
            settings,
            api_key=os.environ.get(API_KEY_VARIABLE),
            machines=read_machine_groups(config) if settings.cluster is not None else (),
            progress=stderr_progress(),
            on_stage=spinner.update,
        )
    signals.on_ready()
    _introduce(console, server)
    if (lost := take_stdout_error()) is not None:
        console.print(f"cannot write to standard output ({lost.strerror}); serving at {server.url} all the same")
    _wait(server, signals)
    _end(console, server)


class StopSignals:
    """What SIGINT and SIGTERM do.

    Before the server is ready they interrupt the start. Then the first asks for an orderly end, a second for an
    immediate one. To interrupt is to raise KeyboardInterrupt in the main thread.
    """

    def __init__(self) -> None:
        self.is_end_asked = False
        self._is_ready = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def on_ready(self) -> None:
        """Let the next signal ask for an orderly end."""
        self._is_ready = True

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self.is_end_asked or not self._is_ready:
            raise KeyboardInterrupt
        self.is_end_asked = True


def _introduce(console: Console, server: Server) -> None:
    status = server.status()
    console.print(workers_table(status))
    memory_bytes = sum(worker["status"]["memory_bytes"] for worker in status["workers"].values())
    console.print(
        f"[bold]{server.model_name}[/bold] is ready after {server.started.ready_after_s:.1f} s, "
        f"context {status['max_model_len']} tokens, workers' own memory {memory_bytes / 1e9:.2f} GB"
    )
    if server.started.disk is not None:
        console.print(server.started.disk.description)
    if server.started.store is not None:
        console.print(f"KV is shared with other machines by the Mooncake Store at {server.started.store.master}")
    console.print(f"step times are predicted from {server.started.costs_source}")
    typer.echo(f"Diptych serves {server.model_name} at {' and '.join(server.urls)}")
    body = f'{{"model": "{server.model_name}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'
    key = f' -H "Authorization: Bearer ${API_KEY_VARIABLE}"' if server.needs_keys else ""
    typer.echo(f"Try:  curl {server.url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{body}'")


def _wait(server: Server, signals: StopSignals) -> None:
    while not signals.is_end_asked:
        if server.wait(SIGNAL_POLL_S):
            server.kill()
            raise LaunchError("the frontend has ended unexpectedly; its last words are above")


def _end(console: Console, server: Server) -> None:
    console.print("finishing running answers; Ctrl-C again ends at once")
    try:
        server.close()
    except KeyboardInterrupt:
        server.kill()
        raise
