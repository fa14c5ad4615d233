"""Runs a program to its end: with deadlines, with progress, and with nothing left running whatever happens here."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from diptych.core.errors import ModelError

_TICK_S = 0.2
_REAP_S = 10.0


@dataclass(frozen=True, slots=True)
class Deadlines:
    """When to give up on a program."""

    total_s: float
    idle_s: float | None = None
    """Without any progress; None: progress cannot be seen."""


@dataclass(frozen=True, slots=True)
class Program:
    """What to run."""

    command: Sequence[str]
    what: str
    """Names it in errors."""
    deadlines: Deadlines
    held_fd: int | None = None
    """Stays open in the program, as a lock that it is to hold."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to ours."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended."""

    exit_code: int
    """Negative: the signal that killed it."""
    stdout: str
    stderr: str

    @property
    def death(self) -> str | None:
        """The signal's name; None if it ended by itself."""
        return signal.Signals(-self.exit_code).name if self.exit_code < 0 else None

    @property
    def last_words(self) -> str:
        """The last line of its stderr, which by custom says what went wrong."""
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {self.exit_code}"


class ProgramReport(msgspec.Struct, frozen=True, kw_only=True):
    """The one line that a program of ours writes to stdout."""

    error: str | None = None
    """What went wrong, as the library said it; None: nothing."""
    kind: str = "other"
    """Sort of error, for who words the line for people."""
    value: msgspec.Raw = msgspec.Raw(b"null")


def python_program(module: str, *arguments: str) -> list[str]:
    """Return the command line of a Python module; the current directory cannot shadow what it imports."""
    return [sys.executable, "-P", "-m", module, *arguments]


def run_program(
    program: Program,
    *,
    measure_bytes: Callable[[], int] = lambda: 0,
    on_bytes: Callable[[int], None] = lambda _num_bytes: None,
) -> Ended:
    """Run `program` until it ends. `measure_bytes` is asked several times a second how far it is, `on_bytes` hears it.

    The program and all it started are dead when this returns or raises.

    Raises: ModelError at a deadline; OSError if the program cannot be started.
    """
    process = subprocess.Popen(
        program.command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, **program.env},
        pass_fds=() if program.held_fd is None else (program.held_fd,),
        start_new_session=True,  # so that what it starts in turn can be killed with it
    )
    try:
        stdout, stderr = _communicate(process, program, measure_bytes, on_bytes)
    finally:
        _kill_session(process)
    return Ended(process.returncode, stdout, stderr)


def _communicate(
    process: subprocess.Popen[str],
    program: Program,
    measure_bytes: Callable[[], int],
    on_bytes: Callable[[int], None],
) -> tuple[str, str]:
    what, deadlines = program.what, program.deadlines
    started_s = moved_s = time.monotonic()
    num_bytes = 0
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=_TICK_S)
        now_s = time.monotonic()
        if (measured := measure_bytes()) != num_bytes:
            num_bytes, moved_s = measured, now_s
        on_bytes(num_bytes)
        if now_s - started_s > deadlines.total_s:
            raise ModelError(f"{what} did not end within {deadlines.total_s:.0f} s and was stopped; try again")
        if deadlines.idle_s is not None and now_s - moved_s > deadlines.idle_s:
            raise ModelError(f"{what} made no progress for {deadlines.idle_s:.0f} s and was stopped; try again")


def _kill_session(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(_REAP_S)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
