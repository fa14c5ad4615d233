"""`diptych key`: make, list and revoke API keys. A key is shown once, when it is made; the file has its hash only."""

import secrets
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from diptych.core.api_keys import ApiKey, KeyLimits, hash_key
from diptych.core.errors import ConfigError
from diptych.core.streams import take_stdout_error
from diptych.frontend.auth.key_file import MAX_LIMIT, changing_key_file, check_name, new_cache_salt, read_key_file

key_app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)

KEY_BYTES = 32
KEY_PREFIX = "dk-"

FileOption = Annotated[
    Path, typer.Option("--file", envvar="DIPTYCH_API_KEYS", help="The file of keys, as for `diptych serve --api-keys`.")
]
NameArgument = Annotated[str, typer.Argument(help="What to call it: letters, digits, - and _.")]


@key_app.command("create")
def create_command(  # noqa: PLR0913, PLR0917  one parameter a flag
    name: NameArgument,
    file: FileOption,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, max=MAX_LIMIT, help="Requests a minute. \\[default: any]")
    ] = None,
    max_concurrent: Annotated[
        int | None, typer.Option(min=1, max=MAX_LIMIT, help="Requests at a time. \\[default: any]")
    ] = None,
    tokens_per_minute: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_LIMIT, help="Tokens a minute, of prompts and answers. \\[default: any]"),
    ] = None,
    admin: Annotated[
        bool, typer.Option("--admin", help="Let it also see what all keys do (`diptych status`).")
    ] = False,
    cache_group: Annotated[
        str | None,
        typer.Option(help="Share cached prefixes with this key, whose holder may then learn what prompts they are."),
    ] = None,
) -> None:
    """Make a key and print it; nobody can print it again."""
    check_name(name)
    key = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    limits = KeyLimits(
        requests_per_minute=requests_per_minute, max_concurrent=max_concurrent, tokens_per_minute=tokens_per_minute
    )
    with changing_key_file(file) as keys:
        by_name = {other.name: other for other in keys}
        if name in by_name:
            raise ConfigError(f"{file} has a key {name} already; revoke it first, or choose another name")
        if cache_group is not None and cache_group not in by_name:
            raise ConfigError(f"--cache-group: {file} has no key {cache_group}")
        salt = new_cache_salt() if cache_group is None else by_name[cache_group].cache_salt
        keys.append(ApiKey(name=name, hash=hash_key(key), cache_salt=salt, is_admin=admin, limits=limits))
    typer.echo(key)
    if (lost := take_stdout_error()) is not None:
        with changing_key_file(file) as keys:
            keys[:] = [other for other in keys if other.name != name]
        raise ConfigError(f"cannot show the key ({lost.strerror}), so {file} does not keep it either")
    typer.echo(f"{file} keeps its hash; this key is not shown again", err=True)


@key_app.command("list")
def list_command(file: FileOption) -> None:
    """Show the keys' names and limits."""
    keys = read_key_file(file)
    groups = [key.cache_salt for key in keys]
    table = Table("name", "may", "requests/min", "at a time", "tokens/min", "cache", box=None, pad_edge=False)
    for key in keys:
        limits = (key.limits.requests_per_minute, key.limits.max_concurrent, key.limits.tokens_per_minute)
        others = [other.name for other in keys if other.cache_salt == key.cache_salt and other is not key]
        shares = f"with {', '.join(others)}" if groups.count(key.cache_salt) > 1 else "own"
        may = "all" if key.is_admin else "ask"
        table.add_row(key.name, may, *("any" if limit is None else f"{limit:,}" for limit in limits), shares)
    Console().print(table)


@key_app.command("revoke")
def revoke_command(name: NameArgument, file: FileOption) -> None:
    """Take a key out of the file; a running server notices within a second."""
    with changing_key_file(file) as keys:
        left = [key for key in keys if key.name != name]
        if len(left) == len(keys):
            raise ConfigError(f"{file} has no key {name}")
        keys[:] = left
    typer.echo(f"{name} is revoked")
