"""A picture of a whole simulation in bounded room: what each worker did, how long queues were, as one HTML file.

Time is cut into at most `MOST_BINS` bins of equal width; when there would be more, two become one. Of a large cluster
some workers of each pool are shown.
"""

from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import msgspec

from diptych.core.ids import WorkerId
from diptych.sim.events import Event
from diptych.sim.outcome import LoadSample
from diptych.sim.plan import ClusterPlan
from diptych.sim.summary import Summary, pool_names

MOST_BINS = 1_500
FIRST_BIN_S = 0.02
MOST_WORKERS = 96
"""Shown, of all pools together."""
PLACE_OF_DATA = "/*DATA*/null"
"""In the page."""


@dataclass(slots=True)
class Track:
    """A worker's time: of each bin, how much went into prompts and into answers, and how many answers there were."""

    prompts_s: list[float] = field(default_factory=list)
    answers_s: list[float] = field(default_factory=list)
    weighted_answers: list[float] = field(default_factory=list)
    """Times the seconds that they were written."""

    def reach(self, num_bins: int) -> None:
        """Have at least so many bins."""
        for values in (self.prompts_s, self.answers_s, self.weighted_answers):
            values.extend([0.0] * (num_bins - len(values)))

    def halve(self) -> None:
        """Make one bin of each two."""
        for values in (self.prompts_s, self.answers_s, self.weighted_answers):
            if len(values) % 2:
                values.append(0.0)
            values[:] = [one + other for one, other in zip(values[::2], values[1::2], strict=True)]


class Timeline:
    """An observer of events that also takes samples of queues."""

    def __init__(self, plan: ClusterPlan) -> None:
        self._pools = pool_names(plan)
        self._bin_s = FIRST_BIN_S
        self._tracks = {worker_id: Track() for worker_id in self._shown()}
        self._queues: dict[str, list[tuple[float, int, int, int]]] = {name: [] for name in self._pools.values()}
        """Of each pool: when, prompts to read, requests without blocks, answers."""
        self._marks: list[tuple[float, str, str]] = []
        """When which worker died, came up, got another role."""

    def _shown(self) -> list[WorkerId]:
        members: dict[str, list[WorkerId]] = {}
        for worker_id, pool in self._pools.items():
            members.setdefault(pool, []).append(worker_id)
        share = max(MOST_WORKERS // len(members), 1)
        return [worker_id for own in members.values() for worker_id in own[:: -(-len(own) // share)]]

    def __call__(self, event: Event) -> None:
        """Take an event in."""
        if event.kind in {"died", "role"}:
            self._marks.append((event.at_s, event.worker, event.detail or event.kind))
        track = self._tracks.get(WorkerId(event.worker)) if event.kind == "steps" else None
        if track is None or event.end_s is None:
            return
        while event.end_s > self._bin_s * MOST_BINS:
            self._bin_s *= 2
            for one in self._tracks.values():
                one.halve()
        self._spread(track, event, max(event.at_s, 0.0), event.end_s)

    def _spread(self, track: Track, event: Event, begin_s: float, end_s: float) -> None:
        """Share steps out among the bins in which they are."""
        first, last = int(begin_s / self._bin_s), min(int(end_s / self._bin_s), MOST_BINS - 1)
        track.reach(last + 1)
        for number in range(first, last + 1):
            part_s = min(end_s, (number + 1) * self._bin_s) - max(begin_s, number * self._bin_s)
            if part_s <= 0:
                continue
            if event.num_answers:
                track.answers_s[number] += part_s
                track.weighted_answers[number] += part_s * event.num_answers
            if event.num_prompt_tokens:
                # A step of both counts for both, half and half: which took how long is not told.
                track.prompts_s[number] += part_s / 2 if event.num_answers else part_s
                track.answers_s[number] -= part_s / 2 if event.num_answers else 0.0

    def on_samples(self, samples: list[LoadSample]) -> None:
        """Take a sample of all workers at one moment."""
        sums: dict[str, list[int]] = {}
        for sample in samples:
            of_pool = sums.setdefault(self._pools[sample.worker_id], [0, 0, 0])
            for place, amount in enumerate((sample.num_queued_prompts, sample.num_waiting, sample.num_answers)):
                of_pool[place] += amount
        for pool, (prompts, waiting, answers) in sums.items():
            self._queues[pool].append((samples[0].at_s, prompts, waiting, answers))
            if len(self._queues[pool]) > 2 * MOST_BINS:
                del self._queues[pool][1::2]

    def page(self, title: str, summary: Summary) -> str:
        """Return the HTML file."""
        template = files("diptych.sim").joinpath("timeline.html").read_text(encoding="utf-8")
        data = msgspec.json.encode(self._data(title, summary)).decode()
        return template.replace(PLACE_OF_DATA, data.replace("</", "<\\/"))

    def _data(self, title: str, summary: Summary) -> dict[str, Any]:
        workers = [
            {
                "id": worker_id,
                "pool": self._pools[worker_id],
                "prompts": [round(part / self._bin_s, 3) for part in track.prompts_s],
                "answers": [round(part / self._bin_s, 3) for part in track.answers_s],
                "batch": [round(weighted / self._bin_s, 1) for weighted in track.weighted_answers],
            }
            for worker_id, track in self._tracks.items()
        ]
        return {
            "title": title,
            "bin_s": self._bin_s,
            "num_workers": len(self._pools),
            "workers": workers,
            "queues": self._queues,
            "marks": self._marks,
            "summary": msgspec.to_builtins(summary),
        }
