"""NIXL: reads from a peer's memory by UCX, which takes the best way that it finds: RDMA, shared memory, TCP.

Without NIXL's progress thread, which takes half a core also while nothing moves: who reads polls, and who is read from
serves for as long as a peer may be reading (UCX over TCP needs both).

A read that fails is lost (`LostReadError`): NIXL has no way to stop one, releasing its handle leaves what was begun
under way, and a peer that has failed leaves requests behind that never end (NIXL 1.5, its issues 2044, 2047 and 2209).
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from diptych.core.errors import TransferError
from diptych.transfer.library import LostReadError, Span

INSTALL = "pip install --no-deps nixl-cu13 nixl"
BACKEND = "UCX"
MEMORY = "DRAM"
IS_RUNNING = "PROC"
HAS_SUCCEEDED = "DONE"


@dataclass(slots=True)
class NixlRead:
    """A read, as the agent knows it."""

    handle: Any
    state: str


class NixlLibrary:
    """This process's agent, with the blocks registered."""

    must_be_served = True

    def __init__(self, host: str, name: str, address: int, num_bytes: int) -> None:
        """Make an agent. Raises: TransferError if that cannot be."""
        del host  # UCX finds the devices itself
        self._agent = _make_agent(name)
        with _as_transfer_error(f"NIXL does not take {num_bytes} bytes of KV"):
            self._agent.register_memory([(address, num_bytes, 0, "")], MEMORY)

    def describe(self) -> bytes:
        """Return how other agents reach this one and its memory."""
        return bytes(self._agent.get_agent_metadata())

    def meet(self, description: bytes) -> Any:
        """Return what the agent calls a peer. Raises: TransferError."""
        with _as_transfer_error("NIXL does not know the peer"):
            return self._agent.add_remote_agent(description)

    def begin(self, peer: Any, spans: Sequence[Span]) -> NixlRead:
        """Begin to read from a peer."""
        targets = [(span.target, span.num_bytes, 0) for span in spans]
        sources = [(span.source, span.num_bytes, 0) for span in spans]
        with _as_transfer_error("NIXL cannot begin to read"):
            handle = self._agent.initialize_xfer(
                "READ",
                self._agent.get_xfer_descs(targets, MEMORY),
                self._agent.get_xfer_descs(sources, MEMORY),
                peer,
            )
        try:
            return NixlRead(handle, self._agent.transfer(handle))
        except Exception as error:
            raise LostReadError(f"NIXL cannot read: {error}") from error

    def has_ended(self, read: NixlRead) -> bool:
        """Tell whether all is here; the handle is then released. Raises: LostReadError."""
        if read.state == IS_RUNNING:
            try:
                read.state = self._agent.check_xfer_state(read.handle)
            except Exception as error:
                raise LostReadError(f"NIXL has lost the peer: {error}") from error
        if read.state == IS_RUNNING:
            return False
        if read.state != HAS_SUCCEEDED:
            raise LostReadError("NIXL cannot read from the peer")
        self._agent.release_xfer_handle(read.handle)
        return True

    def part(self, peer: Any) -> None:
        """Disconnect from a peer, which may be gone."""
        with contextlib.suppress(Exception):
            self._agent.remove_remote_agent(peer)

    def serve(self) -> None:
        """Let UCX answer those that read from here."""
        self._agent.get_new_notifs()


def _make_agent(name: str) -> Any:
    try:
        from nixl._api import nixl_agent, nixl_agent_config  # noqa: PLC0415  an extra
    except ImportError as error:
        raise TransferError(f"NIXL is not there ({error}): {INSTALL}") from None
    logging.getLogger("nixl").setLevel(logging.WARNING)
    with _as_transfer_error("NIXL does not start"):
        agent = nixl_agent(name, nixl_agent_config(enable_prog_thread=False, backends=[]))
        agent.create_backend(BACKEND, {})
    return agent


@contextlib.contextmanager
def _as_transfer_error(what: str) -> Iterator[None]:
    """Turn what the library raises, of many kinds, into our own."""
    try:
        yield
    except Exception as error:
        raise TransferError(f"{what}: {error}") from error
