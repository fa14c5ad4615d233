"""Whether a process says nothing because it hangs, or because others have the cores.

Whoever is stopped, asleep, or waits for a lock wants no core; whoever loops without end has one. Who is ready to run,
and does not come to run, is starved. The kernel's own count of such waits (`run_delay`) will not do: it grows only when
a wait has ended. See: proc_pid_stat(5), and Documentation/scheduler/sched-stats.rst of the kernel.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

NS_PER_S = 1e9
READY = "R"


class _Sample(NamedTuple):
    """Of a thread, at one moment."""

    is_ready: bool
    """Whether it runs or wants to."""
    has_run_s: float
    """In all its life."""


@dataclass(slots=True)
class _Thread:
    last: _Sample
    waited_s: float = 0.0


class Starvation:
    """How long a process has waited for a core since this was made, sampled by whoever asks, several times a second."""

    def __init__(self, pid: int, now_s: float) -> None:
        self._pid = pid
        self._sampled_s = now_s
        self._threads = {name: _Thread(sample) for name, sample in _sample(pid).items()}

    def waited_s(self, now_s: float) -> float:
        """Return the wait of the thread that has waited longest: whoever would speak may need what that one holds.

        0 if the process has ended.
        """
        passed_s, self._sampled_s = now_s - self._sampled_s, now_s
        threads = {}
        for name, sample in _sample(self._pid).items():
            thread = threads[name] = self._threads.get(name) or _Thread(sample)
            if sample.is_ready and thread.last.is_ready:
                thread.waited_s += max(passed_s - (sample.has_run_s - thread.last.has_run_s), 0.0)
            thread.last = sample
        self._threads = threads
        return max((thread.waited_s for thread in threads.values()), default=0.0)


def _sample(pid: int) -> dict[str, _Sample]:
    """Look at all threads of a process; none if it has ended."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return {}
    found = {}
    for thread in threads:
        try:
            state = (thread / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
            has_run_ns = int((thread / "schedstat").read_text(encoding="ascii").split()[0])
        except OSError:  # it has just ended, or this kernel keeps no such statistics
            continue
        found[thread.name] = _Sample(state == READY, has_run_ns / NS_PER_S)
    return found
