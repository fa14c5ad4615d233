"""Which phase holds requests up: said to people by the dashboard and `diptych top`, and no decision of the server.

A phase's use is what it takes of what the SLO allows, now or of late, whichever is more. Reading is allowed the time to
the first token: the queue of prompts, and how long prompts that ended of late took from their grant to their first
token. Writing is allowed the time of a token: of the steps now, and of the answers of late; and a request that cannot
even be read since there is no place to write its answer waits for decode, however idle prefill is.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from diptych.core.events import Lifecycle, RequestRecord
from diptych.core.feed import Bottleneck, Verdict
from diptych.core.messages import WorkerState
from diptych.core.service import WorkerInfo
from diptych.core.slo import Slo

BUSY_USE = 0.7
"""Below it a phase has time to spare."""
CLEAR_RATIO = 1.25
"""How many times as much of its limit one phase must use for it alone to be named."""
MOST_OF_REQUESTS_PERCENT = 90.0


class _Cause(NamedTuple):
    """What a phase takes, of what it may take, and how one says so."""

    use: float
    words: str


_NOTHING = _Cause(0.0, "")


def judge(workers: Iterable[WorkerInfo], recent: Sequence[RequestRecord], num_requests: int, slo: Slo) -> Verdict:
    """Say which phase holds requests up; `recent`: those that ended of late, `num_requests`: that are here now."""
    alive = [worker for worker in workers if worker.status.state in {WorkerState.READY, WorkerState.DRAINING}]
    if not alive:
        return _verdict("none", "No worker is up.", _NOTHING, _NOTHING)
    prefill = max(_queue(alive, slo), _reading(recent, slo))
    decode = max(_steps(alive, slo), _writing(recent, slo), _places(recent, slo))
    if not num_requests and not recent:
        return _verdict("none", "Idle: nothing to read and nothing to write.", prefill, decode)
    if max(prefill.use, decode.use) < BUSY_USE:
        return _verdict("none", "Neither phase is a bottleneck: both keep well within the SLO.", prefill, decode)
    if prefill.use >= CLEAR_RATIO * decode.use:
        return _verdict("prefill", f"{_title('Prefill', prefill)}: {prefill.words}.", prefill, decode)
    if decode.use >= CLEAR_RATIO * prefill.use:
        return _verdict("decode", f"{_title('Decode', decode)}: {decode.words}.", prefill, decode)
    adverb = "" if max(prefill.use, decode.use) > 1 else ", within the SLO so far"
    return _verdict("both", f"Both phases are busy{adverb}: {prefill.words}; {decode.words}.", prefill, decode)


def _verdict(bottleneck: Bottleneck, sentence: str, prefill: _Cause, decode: _Cause) -> Verdict:
    return Verdict(bottleneck=bottleneck, sentence=sentence, prefill_use=prefill.use, decode_use=decode.use)


def _title(phase: str, cause: _Cause) -> str:
    return f"{phase} is the bottleneck" if cause.use > 1 else f"{phase} is nearer to its limit"


def _queue(workers: Sequence[WorkerInfo], slo: Slo) -> _Cause:
    """Return what the longest queue of prompts takes, at its worker's speed."""
    queues = [(worker.status.queued_prefill_tokens, worker.status.prefill_tokens_per_s) for worker in workers]
    queue_s, num_tokens = max(((tokens / speed, tokens) for tokens, speed in queues if speed > 0), default=(0.0, 0))
    words = f"{num_tokens:,} prompt tokens wait, {_text(queue_s)} of reading, and first tokens are due in"
    return _Cause(queue_s / slo.ttft_s, f"{words} {_text(slo.ttft_s)}")


def _reading(recent: Sequence[RequestRecord], slo: Slo) -> _Cause:
    """Return what most prompts took from their grant (or, if read where they were written, their place) on."""
    took_s = _spans(recent, (Lifecycle.GRANTED, Lifecycle.LOADED, Lifecycle.RESERVED), Lifecycle.FIRST_TOKEN)
    most_s = _most(took_s)
    words = f"prompts wait and are read for {_text(most_s)}, and first tokens are due in"
    return _Cause(most_s / slo.ttft_s, f"{words} {_text(slo.ttft_s)}")


def _steps(workers: Sequence[WorkerInfo], slo: Slo) -> _Cause:
    """Return what the slowest step of those that write answers takes."""
    steps_s = [worker.status.decode_step_s for worker in workers if worker.status.num_answers]
    step_s = max(steps_s, default=0.0)
    return _Cause(step_s / slo.tpot_s, f"a step takes {_text(step_s)}, and tokens are due every {_text(slo.tpot_s)}")


def _writing(recent: Sequence[RequestRecord], slo: Slo) -> _Cause:
    most_s = _most([record.tpot_s for record in recent if record.tpot_s is not None])
    return _Cause(most_s / slo.tpot_s, f"tokens come every {_text(most_s)} and are due every {_text(slo.tpot_s)}")


def _places(recent: Sequence[RequestRecord], slo: Slo) -> _Cause:
    """Return what most requests waited for a place among the answers, before their prompts could be read."""
    most_s = _most(_spans(recent, (Lifecycle.ROUTED,), Lifecycle.RESERVED))
    words = f"requests wait {_text(most_s)} for a place among the answers, and first tokens are due in"
    return _Cause(most_s / slo.ttft_s, f"{words} {_text(slo.ttft_s)}")


def _spans(records: Iterable[RequestRecord], begins: Sequence[Lifecycle], end: Lifecycle) -> list[float]:
    """Return the time from the first of `begins` that a request has had to `end`, of those that had both."""
    spans: list[float] = []
    for record in records:
        begin = next((event for event in begins if event in record.timeline), None)
        if begin is not None and end in record.timeline:
            spans.append(max(record.timeline[end] - record.timeline[begin], 0.0))
    return spans


def _most(durations_s: Sequence[float]) -> float:
    """Return what `MOST_OF_REQUESTS_PERCENT` of them do not exceed; 0 of none."""
    return float(np.percentile(durations_s, MOST_OF_REQUESTS_PERCENT)) if durations_s else 0.0


def _text(duration_s: float) -> str:
    return f"{duration_s:.1f} s" if duration_s >= 1 else f"{duration_s * 1e3:.0f} ms"
