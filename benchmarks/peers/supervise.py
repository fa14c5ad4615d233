"""Runs a peer's programs: starts them, waits until all answer, and leaves nothing of them behind.

Programs stay in our process group, so whoever started us can end everything at once, whatever becomes of us. They and
all that they start are our descendants even when a parent in between has ended (we are a "subreaper"), so none is
missed. Shared memory that is mapped by one of them and still there after its end is removed: vLLM leaves its message
queues behind when it is ended by a signal.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from diptych.core.errors import BenchError
from harness.process_memory import tree_of
from peers.peer import Program

POLL_S = 0.25
ANSWER_TIMEOUT_S = 5.0
END_TIMEOUT_S = 20.0
"""For an end in order; `diptych bench` itself waits 40 s."""
ORPHANS_END_TIMEOUT_S = 3.0
NUM_LAST_LINES = 15
SHARED_MEMORY = "/dev/shm/"  # noqa: S108  where POSIX puts it
_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


class Supervisor:
    """Programs that run. A context manager; its end ends them."""

    def __init__(self, programs: Sequence[Program], logs: Path, end_timeout_s: float = END_TIMEOUT_S) -> None:
        """Output will go to files in the folder `logs`, which is removed after a good end."""
        self._programs = programs
        self._processes: list[subprocess.Popen[bytes]] = []
        self._folder = logs
        self._end_timeout_s = end_timeout_s
        self._logs = [logs / f"{program.name}.log" for program in programs]

    def start(self) -> None:
        """Start all programs. Raises: BenchError if one cannot be started."""
        self._folder.mkdir(parents=True, exist_ok=True)
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        for program, log in zip(self._programs, self._logs, strict=True):
            with log.open("wb") as output, _started_on(program.cores):
                try:
                    process = subprocess.Popen(
                        program.command,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        env={**os.environ, **program.env},
                        preexec_fn=_end_with_parent,  # noqa: PLW1509  we have one thread
                    )
                except OSError as error:
                    raise BenchError(f"cannot start {program.name}: {error}; install it anew") from None
            self._processes.append(process)

    def wait_until_healthy(self, timeout_s: float) -> None:
        """Return when all programs answer. Raises: BenchError if one ends or does not answer in time."""
        deadline_s = time.monotonic() + timeout_s
        for program, log in zip(self._programs, self._logs, strict=True):
            while not _is_healthy(program.health_url):
                self.raise_if_ended()
                if time.monotonic() > deadline_s:
                    raise BenchError(f"{program.name} does not answer after {timeout_s:.0f} s{_last_words(log)}")
                time.sleep(POLL_S)

    def raise_if_ended(self) -> None:
        """Return if all run. Raises: BenchError with the last lines of one that does not."""
        for program, process, log in zip(self._programs, self._processes, self._logs, strict=True):
            if (status := process.poll()) is not None:
                how = signal.Signals(-status).name if status < 0 else f"status {status}"
                raise BenchError(f"{program.name} ended ({how}){_last_words(log)}")

    def watch(self) -> None:
        """Never return. Raises: BenchError if a program ends."""
        while True:
            self.raise_if_ended()
            time.sleep(POLL_S)

    def stop(self) -> None:
        """End everything, in order if it goes quickly; then nothing is left of it."""
        shared = _shared_memory_of(_descendants())
        # The proxy first, so that it sees no servers vanish.
        for process in reversed(self._processes):
            if process.poll() is None:
                process.terminate()
        deadline_s = time.monotonic() + self._end_timeout_s
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(deadline_s - time.monotonic(), 0.0))
            process.kill()
            process.wait()
        _end_orphans()
        for path in shared:
            path.unlink(missing_ok=True)

    def __enter__(self) -> "Supervisor":
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Stop; keep the logs after an error of ours."""
        self.stop()
        if kind is None or not issubclass(kind, BenchError):
            shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def _started_on(cores: Sequence[int]) -> Iterator[None]:
    """Start processes on these cores: they inherit ours."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cores)
    except OSError:
        raise BenchError(f"cores {','.join(map(str, cores))} are not ours; we have {sorted(before)}") from None
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _end_with_parent() -> None:
    """Ask for SIGTERM when the parent dies, however it does. Runs in the child."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(url, timeout=ANSWER_TIMEOUT_S, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _last_words(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last = "\n  ".join(lines[-NUM_LAST_LINES:])
    return f"; its last lines, of {log}:\n  {last}" if lines else "; it printed nothing"


def _descendants() -> list[int]:
    return [pid for pid in tree_of(os.getpid()) if pid != os.getpid()]


def _end_orphans() -> None:
    """End what the programs left running; reap it, for it has become ours."""
    deadline_s = time.monotonic() + ORPHANS_END_TIMEOUT_S
    number = signal.SIGTERM
    while living := _reap(_descendants()):
        for pid in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        time.sleep(POLL_S / 5)
        number = signal.SIGKILL if time.monotonic() > deadline_s else signal.SIGTERM


def _reap(pids: Sequence[int]) -> list[int]:
    """Return those that are still there."""
    living = []
    for pid in pids:
        try:
            reaped, _ = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:  # another's child still, or reaped by its Popen
            reaped = 0
        if not reaped and Path(f"/proc/{pid}").exists():
            living.append(pid)
    return living


def _shared_memory_of(pids: Sequence[int]) -> set[Path]:
    """Return the shared memory that these processes have mapped and that has a name."""
    found: set[Path] = set()
    for pid in pids:
        found.update(Path(SHARED_MEMORY).glob(f"__KMP_REGISTERED_LIB_{pid}_*"))  # Intel's OpenMP maps it only briefly
        with contextlib.suppress(OSError):  # it has just ended
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                _, slash, name = line.partition(SHARED_MEMORY)
                if slash and not name.endswith("(deleted)"):
                    found.add(Path(SHARED_MEMORY, name))
    return found
