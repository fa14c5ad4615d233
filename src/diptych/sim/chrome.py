"""Events as a Chrome trace (chrome://tracing, ui.perfetto.dev): a track for each worker, a span for each request.

The format: "Trace Event Format", a JSON array of events with times in microseconds; the closing bracket may be missing,
so what was written before an interruption can be opened.
"""

from typing import Any, BinaryIO

import msgspec

from diptych.core.ids import WorkerId
from diptych.sim.events import Event
from diptych.sim.plan import ClusterPlan
from diptych.sim.summary import pool_names

MICROSECONDS = 1e6
REQUESTS = 0
"""Process id of the requests' track; pools count from 1."""


class ChromeTrace:
    """An observer that writes what it is told to a file, which stays the caller's to close."""

    def __init__(self, file: BinaryIO, plan: ClusterPlan) -> None:
        self._file = file
        self._encoder = msgspec.json.Encoder()
        pools = pool_names(plan)
        numbers = {name: number for number, name in enumerate(dict.fromkeys(pools.values()), 1)}
        self._place = {worker_id: (numbers[pool], thread) for thread, (worker_id, pool) in enumerate(pools.items(), 1)}
        file.write(b"[\n")
        self._name("process_name", REQUESTS, 0, "requests")
        for pool, number in numbers.items():
            self._name("process_name", number, 0, pool)
        for worker_id, (process, thread) in self._place.items():
            self._name("thread_name", process, thread, worker_id)

    def _name(self, kind: str, process: int, thread: int, name: str) -> None:
        self._write({"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}})

    def _write(self, event: dict[str, Any]) -> None:
        self._file.write(self._encoder.encode(event) + b",\n")

    def __call__(self, event: Event) -> None:
        """Write an event.

        Raises: OSError if the file does not take it.
        """
        at_us = event.at_s * MICROSECONDS
        match event.kind:
            case "steps" | "sent":
                self._write_span(event, at_us)
            case "arrived" | "finished" | "refused" | "failed":
                phase = "b" if event.kind == "arrived" else "e"
                self._write(
                    {"name": event.request, "cat": "request", "ph": phase, "id": event.request, "pid": REQUESTS,
                     "tid": 0, "ts": at_us, "args": {"end": event.kind, "worker": event.worker}}
                )  # fmt: skip
            case "first_token" | "preempted" | "died" | "up" | "role":
                process, thread = self._place[WorkerId(event.worker)]
                self._write(
                    {"name": event.kind, "ph": "i", "s": "t", "pid": process, "tid": thread, "ts": at_us,
                     "args": {"request": event.request, "detail": event.detail}}
                )  # fmt: skip
            case _:
                pass

    def _write_span(self, event: Event, at_us: float) -> None:
        assert event.end_s is not None
        process, thread = self._place[WorkerId(event.worker)]
        duration_us = event.end_s * MICROSECONDS - at_us
        span: dict[str, Any] = {"ph": "X", "pid": process, "tid": thread, "ts": at_us, "dur": duration_us}
        if event.kind == "sent":
            # Beside the steps, so not on their track.
            span |= {
                "name": f"KV to {event.reader}",
                "tid": thread + len(self._place),
                "args": {"request": event.request},
            }
        else:
            name = "prompts" if not event.num_answers else "answers" if not event.num_prompt_tokens else "both"
            args = {
                "steps": event.num_steps,
                "answers": event.num_answers,
                "prompt_tokens": event.num_prompt_tokens,
            }
            span |= {"name": name, "args": args}
        self._write(span)
