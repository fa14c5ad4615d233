"""A library that a carrier uses: reads from a peer's memory at once, unless its behaviour says otherwise.

Its behaviour is what a library is told as its host: BEHAVIOUR, or BEHAVIOUR:FILE to behave so once, which the file then
says. Each read that is begun leaves a mark in the file.
"""

import ctypes
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from diptych.core.errors import TransferError
from diptych.transfer.library import LostReadError, Span


class Peer(NamedTuple):
    memory: Path
    address: int


class ScriptedLibrary:
    must_be_served = False

    def __init__(self, host: str, name: str, address: int, num_bytes: int) -> None:
        self._behaviour, _, log = host.partition(":")
        self._log = Path(log) if log else None
        if self._log is not None and self._log.exists():
            self._behaviour = "reads"
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if self._behaviour == "is missing":
            raise TransferError("no such library")
        if self._behaviour == "does not start":
            time.sleep(3600)
        self._memory = f"/proc/{os.getpid()}/fd/{sys.argv[2]}"
        self._address = address

    def describe(self) -> bytes:
        return f"{self._memory} {self._address}".encode()

    def meet(self, description: bytes) -> Peer:
        memory, address = description.decode().split()
        return Peer(Path(memory), int(address))

    def begin(self, peer: Peer, spans: Sequence[Span]) -> None:
        if self._log is not None:
            with self._log.open("a") as log:
                log.write(f"{self._behaviour}\n")
        match self._behaviour:
            case "reads":
                with peer.memory.open("rb") as memory:
                    for span in spans:
                        content = os.pread(memory.fileno(), span.num_bytes, span.source - peer.address)
                        ctypes.memmove(span.target, content, span.num_bytes)
            case "never ends" | "is lost":
                threading.Thread(target=_scribble, args=(spans[0],), daemon=True).start()
            case "does not return":
                _scribble(spans[0])
            case "crashes":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "raises":
                raise ZeroDivisionError
            case "fails":
                raise TransferError("a card has burnt")

    def has_ended(self, read: None) -> bool:
        if self._behaviour == "is lost":
            raise LostReadError("the peer does not answer any more")
        return self._behaviour == "reads"

    def part(self, peer: Peer) -> None:
        pass

    def serve(self) -> None:
        pass


def _scribble(span: Span) -> None:
    """Write into the first block again and again, as a library does whose bytes come late."""
    while True:
        ctypes.memmove(span.target, os.urandom(8), 8)
        time.sleep(0.001)
