"""Looks a hundred times a second at where this worker's threads are, for as long as it is asked to.

Needs nothing but Python: no debugger's rights, no other program. A look costs about 0.1 ms and takes the interpreter's
lock, so nothing is seen while other code holds it; the engine does not, while it computes.
"""

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import FrameType

from diptych.core.bounds import MAX_STACK_CHARACTERS, MAX_STACKS
from diptych.core.ids import RouterId, WorkerId
from diptych.core.messages import SampleStacks, StackSamples
from diptych.wire.wake import Wake
from diptych.worker.activity import Activity, Place, activity_of

INTERVAL_S = 0.01
MAX_FRAMES = 60
OTHERS = "..."
"""Stands for the rest, where there are too many different stacks to tell."""


class StackSampler:
    """Owned by the worker's loop; looks on a thread of its own, one order at a time."""

    def __init__(self, loop_thread: int, find_step_thread: Callable[[], int | None], wake: Wake) -> None:
        """Look at these two threads (by their idents), and raise `wake` when that is done."""
        self._loop_thread = loop_thread
        self._find_step_thread = find_step_thread
        self._wake = wake
        self._order: SampleStacks | None = None
        self._counts: Counter[str] = Counter()
        self._is_done = threading.Event()
        self._must_stop = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, order: SampleStacks) -> None:
        """Begin to look. While an order is being carried out, further ones are passed over."""
        if self._order is not None:
            return
        self._order = order
        self._counts.clear()
        self._thread = threading.Thread(target=self._look, args=(order.duration_s,), name="stacks", daemon=True)
        self._thread.start()

    def try_take(self, worker_id: WorkerId, incarnation: int) -> tuple[RouterId, StackSamples] | None:
        """Return who asked, and what was seen, once the time of an order is over; None before, or if there is none."""
        if not self._is_done.is_set() or self._order is None:
            return None
        self._is_done.clear()
        order, self._order = self._order, None
        samples = StackSamples(
            worker_id=worker_id,
            incarnation=incarnation,
            number=order.number,
            interval_s=INTERVAL_S,
            stacks=_bounded(self._counts),
        )
        return order.router, samples

    def close(self) -> None:
        """Stop looking."""
        self._must_stop.set()
        if self._thread is not None:
            self._thread.join()

    def _look(self, duration_s: float) -> None:
        end_s = next_s = time.monotonic()
        end_s += duration_s
        while (now_s := time.monotonic()) < end_s:
            frames = sys._current_frames()
            step_thread = self._find_step_thread()
            loop = _stack(frames.get(self._loop_thread))
            steps = _stack(frames.get(step_thread)) if step_thread is not None else []
            del frames
            activity = activity_of(loop, steps)
            self._counts[_line(activity, steps if activity is Activity.ENGINE else loop)] += 1
            next_s = max(next_s + INTERVAL_S, now_s)
            if self._must_stop.wait(max(next_s - time.monotonic(), 0.0)):
                return
        self._is_done.set()
        self._wake.raise_flag()


def _stack(frame: FrameType | None) -> list[Place]:
    """Return a thread's stack, outermost frame first; of a very deep one the innermost frames."""
    places: list[Place] = []
    while frame is not None and len(places) < MAX_FRAMES:
        places.append(Place(frame.f_globals.get("__name__", "?"), frame.f_code.co_qualname))
        frame = frame.f_back
    return places[::-1]


def _line(activity: Activity, stack: list[Place]) -> str:
    """Return a sample as Brendan Gregg's tools fold it: frames between semicolons, behind the activity."""
    frames = ";".join(f"{place.module}:{place.function}" for place in stack)
    return f"{activity.value};{frames}"[:MAX_STACK_CHARACTERS]


def _bounded(counts: Counter[str]) -> dict[str, int]:
    """Return the most frequent stacks, and the others by activity alone."""
    told = dict(counts.most_common(MAX_STACKS - len(Activity)))
    for line, count in counts.items():
        if line not in told:
            activity = line.partition(";")[0]
            rest = f"{activity};{OTHERS}"
            told[rest] = told.get(rest, 0) + count
    return told
