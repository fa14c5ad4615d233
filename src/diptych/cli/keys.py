"""`diptych keys`: make the keys by which the machines of a cluster know each other."""

from pathlib import Path
from typing import Annotated

import typer

from diptych.wire.cluster_keys import HEAD_FOLDER, create_keys


def keys_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to put them. What is there stays as it is.")],
    nodes: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Machines that may join. \\[default: node]")
    ] = None,
) -> None:
    """Make keys for a cluster: for the router's machine, and for each that may join.

    The router gets DIR (or DIR/head alone): `diptych serve --cluster-listen HOST:PORT --cluster-keys DIR`. Each other
    machine gets its own folder, and no other: `diptych worker --join HOST:PORT --keys NAME`. Several machines may use
    the same keys. A running router lets new ones in within a second; removing DIR/head/nodes/NAME.key shuts one out.
    """
    names = nodes or ["node"]
    new = create_keys(folder, names)
    typer.echo(f"{folder / HEAD_FOLDER} stays on the router's machine")
    for name in names:
        is_old = "" if name in new else " (there already)"
        typer.echo(f"{folder / name} goes to {name}, over a way that nobody else reads{is_old}")
