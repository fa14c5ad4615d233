"""What a peer is: a serving system that a user might pick instead, with how it is installed and started."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from diptych.models.catalog import DEFAULT_MODEL
from peers.stock import Stock

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a peer is to run."""

    port: int
    cores: tuple[int, ...]
    flags: tuple[str, ...] = ()
    """Of the server itself, after ours: the last one wins."""
    model: str = DEFAULT_MODEL
    """A name of Diptych's catalog, or a GGUF file."""


@dataclass(frozen=True, slots=True)
class Program:
    """One process of a peer."""

    name: str
    command: tuple[str, ...]
    health_url: str
    """Answers 200 once the program serves."""
    cores: tuple[int, ...]
    """It and all that it starts keep to these."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to ours."""


FreePort = Callable[[], int]
"""Returns a port of the loopback address that nobody listens on."""


class Peer(Protocol):
    """A serving system. Knows nothing of processes: it says what to run."""

    @property
    def name(self) -> str:
        """What the command line calls it."""
        ...

    @property
    def description(self) -> str:
        """One line, with the version."""
        ...

    def install(self, stock: Stock, model: str) -> None:
        """Install what is not there, and bring the model into the form that it reads. Needs a network the first time.

        Raises: BenchError.
        """
        ...

    def programs(self, stock: Stock, place: Place, free_port: FreePort) -> list[Program]:
        """Return what to start, all at once; the last one answers at `place.port`. Everything is installed.

        Raises: BenchError if the peer cannot run in such a place.
        """
        ...


def our_path() -> dict[str, str]:
    """Return the environment in which `python -m peers.PROGRAM` is found, by our own interpreter."""
    folder, before = str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{folder}:{before}" if before else folder}
