"""A library that reads from a peer's registered memory, as a carrier uses it (carrier_process.py)."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from diptych.core.errors import DiptychError


class Span(NamedTuple):
    """Bytes to fetch."""

    target: int
    """Address in this process."""
    source: int
    """Address in the peer's."""
    num_bytes: int


class LostReadError(DiptychError):
    """A read has failed, and the library may be moving its bytes all the same: only the end of its process stops it."""


class Library(Protocol):
    """One a process, used by one thread. Its maker takes host, name, address and size, and raises TransferError.

    What it calls a peer or a read is its own business, so those are of any type here.
    """

    must_be_served: bool
    """Whether peers can read from here only while `serve` is called again and again."""

    def describe(self) -> bytes:
        """Return how the libraries of peers reach this one."""
        ...

    def meet(self, description: bytes) -> Any:
        """Return a peer that has described itself so. Raises: TransferError."""
        ...

    def begin(self, peer: Any, spans: Sequence[Span]) -> Any:
        """Begin to read, and return that read.

        Raises: TransferError if nothing moves; LostReadError if something may.
        """
        ...

    def has_ended(self, read: Any) -> bool:
        """Do what is due for a read; tell whether all its bytes are here, after which it is not asked about again.

        Raises: TransferError if it has failed, and nothing moves any more; LostReadError if something may.
        """
        ...

    def part(self, peer: Any) -> None:
        """Forget a peer."""
        ...

    def serve(self) -> None:
        """Do what is due for peers that read from here."""
        ...
