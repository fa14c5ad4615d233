"""What `diptych top` shows: one picture of a terminal's size, made of the frames of the feed."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from diptych.cli.status import cores_text, share_text
from diptych.core.events import UNFINISHED, Lifecycle, RequestRecord
from diptych.core.feed import Frame, Percentiles
from diptych.core.ids import WorkerId
from diptych.core.messages import Role
from diptych.core.service import WorkerInfo

MOST_ENDED = 200
NUM_BARS = 24
FEWEST_REQUESTS = 3
LEVELS = " ▁▂▃▄▅▆▇█"
PHASES = {"queued": ("░", "dim"), "prefill": ("▒", "yellow"), "hand-over": ("▌", "magenta"), "decode": ("█", "cyan")}
"""A sign and a style each: without colours they differ all the same."""
BOTTLENECK_STYLES = {"none": "green", "prefill": "bold yellow", "decode": "bold yellow", "both": "bold yellow"}
ID_WIDTH = 14
ROLES = [Role.PREFILL, Role.DECODE, Role.MIXED]


@dataclass
class Seen:
    """The last frame, and the requests that have ended of late."""

    frame: Frame | None = None
    ended: deque[RequestRecord] = field(default_factory=lambda: deque(maxlen=MOST_ENDED))
    trouble: str = ""
    """Why there is nothing newer."""

    def take(self, frame: Frame) -> None:
        """Take note of a frame."""
        if self.frame is not None and frame.server != self.frame.server:
            self.ended.clear()
        known = {record.request_id for record in self.ended}
        self.ended.extend(record for record in frame.ended if record.request_id not in known)
        self.frame = frame
        self.trouble = ""


class Span(NamedTuple):
    """A phase that a request has been through."""

    phase: str
    duration_s: float


def spans_of(record: RequestRecord, now_s: float) -> list[Span]:
    """Return the phases of a request, in order, the last one up to now if it runs."""
    moments = record.timeline
    end_s = moments.get(Lifecycle.FINISHED, now_s)
    first_s = moments.get(Lifecycle.FIRST_TOKEN)
    read_s = end_s if first_s is None else first_s
    started_s = moments.get(Lifecycle.PREFILL_STARTED)
    borders = [("queued", moments[Lifecycle.ARRIVED], read_s if started_s is None else started_s)]
    if started_s is not None:
        borders.append(("prefill", started_s, read_s))
    if first_s is not None:
        joined_s = first_s if record.prefill_worker is None else moments.get(Lifecycle.JOINED, end_s)
        borders += [("hand-over", first_s, joined_s), ("decode", joined_s, end_s)]
    return [Span(phase, max(until_s - since_s, 0.0)) for phase, since_s, until_s in borders if until_s > since_s]


def render(seen: Seen, width: int, height: int | None) -> RenderableType:
    """Return a picture of this size; `height` of None: as high as it becomes."""
    assert seen.frame is not None
    frame = seen.frame
    parts: list[RenderableType] = [
        _head(frame, seen.trouble),
        _verdict(frame),
        Text(),
        _workers(frame.status.workers),
        Text(),
    ]
    parts += [_latencies(frame, seen), _cache(frame), _legend()]
    num_rows = 10
    if height is not None:
        num_used = 9 + len(frame.status.workers) + -(-len(frame.verdict.sentence) // max(width, 1))
        num_rows = max(height - num_used - 2, FEWEST_REQUESTS)
    parts.append(_requests(frame, seen.ended, width, num_rows))
    return Group(*parts)


def _head(frame: Frame, trouble: str) -> Text:
    status = frame.status
    text = Text.assemble(("Diptych ", "bold"), f"{status.model}, {status.health}, ", no_wrap=True, overflow="ellipsis")
    text.append(f"{status.num_requests} requests here, {status.num_ended} ended   ")
    text.append(trouble or "q ends", style="bold red" if trouble else "dim")
    return text


def _verdict(frame: Frame) -> Text:
    return Text(frame.verdict.sentence, style=BOTTLENECK_STYLES[frame.verdict.bottleneck])


def _workers(workers: Mapping[WorkerId, WorkerInfo]) -> Table:
    table = _table()
    for heading in ("worker", "state", "cores"):
        table.add_column(heading, no_wrap=True)
    for heading in ("batch", "wait", "to read", "step", "prompts", "blocks"):
        table.add_column(heading, no_wrap=True, justify="right")
    for name, info in sorted(workers.items(), key=lambda one: (ROLES.index(one[1].role), one[0])):
        status = info.status
        num_used = status.num_blocks - status.num_free_blocks - status.num_cached_blocks
        table.add_row(
            name,
            Text(status.state, style="" if status.state == "ready" else "yellow"),
            cores_text(status.cores),
            str(status.num_running),
            str(status.num_waiting),
            f"{status.queued_prefill_tokens:,}",
            _duration(status.decode_step_s) if status.decode_step_s else f"{status.prefill_tokens_per_s:,.0f} t/s",
            f"{status.prefill_share:.0%}",
            f"{num_used}/{status.num_blocks}" if status.num_blocks else "-",
        )
    return table


def _latencies(frame: Frame, seen: Seen) -> Table:
    table = _table()
    table.add_column("last minute", no_wrap=True)
    for heading in ("p50", "p90", "p99", "limit"):
        table.add_column(heading, no_wrap=True, justify="right")
    table.add_column("the last ones", no_wrap=True)
    slo, window = frame.slo, frame.window
    ttfts = [record.ttft_s for record in seen.ended]
    tpots = [record.tpot_s for record in seen.ended]
    table.add_row(
        "first token", *_percentiles(window.ttft, slo.ttft_s), _duration(slo.ttft_s), _spark(ttfts, slo.ttft_s)
    )
    table.add_row(
        "each further", *_percentiles(window.tpot, slo.tpot_s), _duration(slo.tpot_s), _spark(tpots, slo.tpot_s)
    )
    return table


def _percentiles(values: Percentiles | None, limit_s: float) -> list[Text]:
    if values is None:
        return [Text("-")] * 3
    return [Text(_duration(one), style="red" if one > limit_s else "") for one in (values.p50, values.p90, values.p99)]


def _spark(durations_s: Sequence[float | None], limit_s: float) -> Text:
    """Return a sign a request, as high as its share of the limit; red and an exclamation mark: above it."""
    text = Text()
    known_s = [duration_s for duration_s in durations_s if duration_s is not None]
    for duration_s in known_s[-NUM_BARS:]:
        level = min(1 + int(duration_s / limit_s * (len(LEVELS) - 2)), len(LEVELS) - 1)
        is_late = duration_s > limit_s
        text.append("!" if is_late else LEVELS[level], style="bold red" if is_late else "cyan")
    return text


def _cache(frame: Frame) -> Text:
    window = frame.window
    num_memory = window.num_cached_tokens - window.num_loaded_tokens
    num_due = window.num_answered + window.num_failed
    text = Text.assemble(
        ("SLO met ", "bold"), f"{share_text(window.num_met_slo, num_due)} of {num_due}   ", no_wrap=True
    )
    text.append("prompts ", style="bold")
    text.append(f"{share_text(num_memory, window.num_prompt_tokens)} from memory, ")
    text.append(f"{share_text(window.num_loaded_tokens, window.num_prompt_tokens)} loaded")
    return text


def _legend() -> Text:
    parts = [part for phase, (sign, style) in PHASES.items() for part in ((sign, style), (f" {phase}   ", "dim"))]
    return Text.assemble(*parts, no_wrap=True)


def _requests(frame: Frame, ended: Sequence[RequestRecord], width: int, num_rows: int) -> Table:
    table = _table()
    table.add_column("request", no_wrap=True, max_width=ID_WIDTH)
    table.add_column("phase", no_wrap=True)
    for heading in ("prompt", "cached", "answer", "time"):
        table.add_column(heading, no_wrap=True, justify="right")
    table.add_column("", no_wrap=True)
    bar_width = max(width - 56, 8)
    shown = [*frame.running, *reversed(ended)][:num_rows]
    for record in shown:
        spans = spans_of(record, frame.now_s)
        state = (spans[-1].phase if spans else "queued") if record.outcome == UNFINISHED else record.outcome
        sizes = (record.num_prompt_tokens, record.num_cached_tokens, record.num_output_tokens)
        total = _duration(sum(span.duration_s for span in spans))
        table.add_row(
            record.request_id.rpartition("-")[2][:ID_WIDTH],
            Text(state, style="bold" if record.outcome == UNFINISHED else "dim"),
            *(f"{size:,}" for size in sizes),
            total,
            _bar(spans, bar_width),
        )
    return table


def _bar(spans: Sequence[Span], width: int) -> Text:
    """Return a bar of this width whose parts are the phases' shares of the time, none of them lost."""
    whole_s = sum(span.duration_s for span in spans)
    text = Text(no_wrap=True)
    for phase, duration_s in spans:
        sign, style = PHASES[phase]
        text.append(sign * max(round(duration_s / whole_s * width), 1), style=style)
    text.truncate(width)
    return text


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")


def _duration(duration_s: float) -> str:
    if duration_s >= 1:
        return f"{duration_s:.1f} s"
    return f"{duration_s * 1e3:.0f} ms"
