"""A worker's end of the process that talks to a Mooncake Store for it: started, asked, ended.

A question that is not answered in time, or that the store cannot answer, ends the process: then nobody writes into a
slot any more, and the next one begins afresh. Questions of different channels are asked by different threads.
"""

import contextlib
import mmap
import os
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import msgspec

from diptych.core.errors import LaunchError, ProtocolError, TierError
from diptych.tiers.store_messages import Answer, Channel, Done, Question, Trouble
from diptych.wire.control import ControlChannel

PROCESS_MODULE = "diptych.tiers.mooncake_process"
OPEN_DEADLINE_S = 10.0
ASK_DEADLINE_S = 3.0
"""More than the library's own deadlines, which are of the same kind."""
Expected = TypeVar("Expected", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """Which store, and what its blocks are."""

    master: str
    """HOST:PORT."""
    host: str
    """This machine's address for others; empty: the one that leads to the master."""
    key: str
    """Names the model, the layout and all else that KV depends on; begins every block's key."""
    block_bytes: int


class _Line(NamedTuple):
    """A channel, and who may use it."""

    lock: threading.Lock
    channel: ControlChannel[Answer]


class _Life(NamedTuple):
    """One process and the channels to it."""

    process: "subprocess.Popen[bytes]"
    lines: tuple[_Line, ...]
    reasons: list[str]
    """Why it was ended; the first one counts."""


class SharedSlots:
    """Memory for blocks on their way, which the process maps too; takes none before it is written."""

    def __init__(self, num_slots: int, slot_bytes: int) -> None:
        self.slot_bytes = slot_bytes
        self.descriptor = os.memfd_create("diptych-store", os.MFD_CLOEXEC)
        os.ftruncate(self.descriptor, num_slots * slot_bytes)
        view = memoryview(mmap.mmap(self.descriptor, num_slots * slot_bytes))
        self._slots = [view[number * slot_bytes : (number + 1) * slot_bytes] for number in range(num_slots)]

    def __getitem__(self, slot: int) -> memoryview:
        return self._slots[slot]

    def close(self) -> None:
        """Let no further process map it."""
        os.close(self.descriptor)


class MooncakeLink:
    """At most one process at a time."""

    def __init__(self, settings: StoreSettings, slots: SharedSlots) -> None:
        self._settings = settings
        self._slots = slots
        self._lock = threading.Lock()
        self._life: _Life | None = None
        self._is_reached = False
        self._is_closed = False

    @property
    def is_open(self) -> bool:
        """Whether questions can be asked."""
        return self._is_reached

    def open(self) -> None:
        """Start a process and wait until it has reached the store. The process ends with the thread that calls this.

        Raises: TierError if it has not.
        """
        life = self._start()
        with self._lock:
            is_wanted, self._life = not self._is_closed, life
        if not is_wanted:
            raise TierError(self._end(life, "it is closed"))
        try:
            self._ask(life, Channel.STORES, None, Done, OPEN_DEADLINE_S)
        except TierError as error:
            raise TierError(self._end(life, str(error))) from None
        with self._lock:
            self._is_reached = self._life is life

    def _start(self) -> _Life:
        pairs = [socket.socketpair() for _ in Channel]
        theirs = [there.fileno() for _, there in pairs]
        settings, slots = self._settings, self._slots
        arguments = ["--parent", str(os.getpid()), "--master", settings.master, "--host", settings.host]
        arguments += ["--memory", str(slots.descriptor), "--slot-bytes", str(slots.slot_bytes)]
        arguments += ["--channels", *map(str, theirs)]
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", PROCESS_MODULE, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(slots.descriptor, *theirs),
            )
        except OSError as error:
            for ours, _ in pairs:
                ours.close()
            raise TierError(f"no process can be started for it ({error.strerror})") from None
        finally:
            for _, there in pairs:
                there.close()
        return _Life(process, tuple(_Line(threading.Lock(), ControlChannel(ours, Answer)) for ours, _ in pairs), [])

    def ask(self, channel: Channel, question: Question, expected: type[Expected]) -> Expected:
        """Return the answer. Raises: TierError if there is none, or the store cannot be used; then it is not open."""
        life = self._life
        if life is None or not self._is_reached:
            raise TierError("it is not open")
        try:
            return self._ask(life, channel, question, expected, ASK_DEADLINE_S)
        except TierError as error:
            raise TierError(self._end(life, str(error))) from None

    def _ask(
        self, life: _Life, channel: Channel, question: Question | None, expected: type[Expected], timeout_s: float
    ) -> Expected:
        """Ask and return the answer; without a question, the next thing that is said. Raises: TierError."""
        lock, line = life.lines[channel]
        with lock:
            try:
                if question is not None:
                    line.send(question)
                answer = line.receive(timeout_s)
            except (LaunchError, ProtocolError, OSError) as error:
                raise TierError(f"its client: {error}") from None
        if isinstance(answer, Trouble):
            raise TierError(answer.reason)
        if not isinstance(answer, expected):
            raise TierError(f"its client answers {type(answer).__name__}")
        return answer

    def close(self) -> None:
        """End the process, if there is one, and start no other."""
        with self._lock:
            self._is_closed, life = True, self._life
        if life is not None:
            self._end(life, "it is closed")

    def _end(self, life: _Life, reason: str) -> str:
        """End a process for that reason; return the first reason for which it was ended."""
        with self._lock:
            life.reasons.append(reason)  # before it is killed: who sees only that is told why
            if self._life is life:
                self._life, self._is_reached = None, False
        with contextlib.suppress(ProcessLookupError):
            life.process.kill()
        life.process.wait()
        for lock, channel in life.lines:
            with lock:  # whoever is waiting there sees at once that the process has ended
                channel.close()
        return life.reasons[0]
