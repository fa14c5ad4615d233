"""The hand-over: from the prefill worker's first token to the start of the decode step that takes the sequence in.

Rounds on an idle decode worker alternate with rounds on one that writes other answers. On the busy one the running
step has to end first, so its length (the token gap of the other answers around that moment) is subtracted. Both times
are the server's own, from GET /diptych/requests. No KV byte is copied in either case: prefill computes in the decode
worker's blocks; a short run with --kv-checksums shows that decode reads what prefill wrote.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import uvloop

import diptych
from diptych.bench.statistics import estimate_median
from diptych.core.errors import BenchError
from diptych.core.events import Lifecycle, RequestRecord
from harness.client import Background, LoadClient, Trace
from harness.options import Options, setting
from harness.program import Outcome, ProgressBar, run_program
from harness.prompts import Prompts
from harness.result import Finding, single
from harness.serving import client_cores, pinned_to

MAX_HANDOFF_MS = 2.0
BACKGROUND_WORDS = 16
SETTLE_TOKENS = 8
NUM_ANSWER_TOKENS = 4
NUM_CHECKED = 8
CHECKED_PROMPT_TOKENS = 300


@dataclass(frozen=True, kw_only=True)
class HandoffOptions(Options):
    """Flags of this benchmark."""

    num_requests: int = setting(12, "Hand-overs in each round.")
    num_words: int = setting(48, "Words of each prompt.")
    num_background: int = setting(8, "Answers that run on the busy decode worker.")
    background_tokens: int = setting(1_500, "Tokens that a background answer may have.")


@dataclass(slots=True)
class Handoffs:
    """Seconds of each hand-over."""

    idle_s: list[float] = field(default_factory=list)
    busy_s: list[float] = field(default_factory=list)
    running_step_s: list[float] = field(default_factory=list)
    """The background's token gap around each busy hand-over."""

    @property
    def beyond_step_s(self) -> list[float]:
        """Of each busy hand-over, what the running step does not explain; 0 where it ended within that step's time."""
        return [max(busy - step, 0.0) for busy, step in zip(self.busy_s, self.running_step_s, strict=True)]


def measure(options: HandoffOptions, progress: ProgressBar) -> Outcome:
    """Alternate idle and busy rounds, then check the bytes on a server of its own."""
    progress.expect(2 * options.pairs + 2)
    with progress.part("starting"):
        server = diptych.serve(options.serve_config())
    with server, pinned_to(client_cores(server.status())):
        handoffs = uvloop.run(_measure_rounds(server, options, progress))
    with progress.part("checksums"), diptych.serve(options.serve_config(kv_checksums=True)) as checked_server:
        num_checked = uvloop.run(_check_bytes(checked_server, options))
    return Outcome(_findings(handoffs, num_checked, options.seed), _samples(handoffs, num_checked))


def _findings(handoffs: Handoffs, num_checked: int, seed: int) -> list[Finding]:
    def in_ms(seconds: Sequence[float]) -> list[float]:
        return [value * 1e3 for value in seconds]

    idle = estimate_median(in_ms(handoffs.idle_s), seed)
    beyond = estimate_median(in_ms(handoffs.beyond_step_s), seed)
    busy = estimate_median(in_ms(handoffs.busy_s), seed)
    step = estimate_median(in_ms(handoffs.running_step_s), seed)
    return [
        Finding(what="hand-over to an idle decode worker, p50", measured=idle, unit="ms", at_most=MAX_HANDOFF_MS),
        Finding(
            what="hand-over to a busy one beyond the running step, p50",
            measured=beyond,
            unit="ms",
            at_most=MAX_HANDOFF_MS,
        ),
        Finding(what="hand-over to a busy decode worker, p50", measured=busy, unit="ms"),
        Finding(what="its running step, p50", measured=step, unit="ms"),
        Finding(
            what="KV bytes copied by a hand-over (in place by construction)", measured=single(0), unit="B", at_most=0
        ),
        Finding(
            what="hand-overs whose blocks had the same checksum on both sides",
            measured=single(num_checked / NUM_CHECKED * 100),
            unit="%",
            at_least=100,
        ),
    ]


def _samples(handoffs: Handoffs, num_checked: int) -> dict[str, Any]:
    return {
        "idle_s": handoffs.idle_s,
        "busy_s": handoffs.busy_s,
        "running_step_s": handoffs.running_step_s,
        "num_checked_handoffs": num_checked,
    }


async def _measure_rounds(server: diptych.Server, options: HandoffOptions, progress: ProgressBar) -> Handoffs:
    prompts, handoffs = Prompts(options.seed), Handoffs()
    async with LoadClient(server.url, server.model_name) as client:
        await client.complete(prompts.text(options.num_words), NUM_ANSWER_TOKENS)  # connects

        async def idle_round() -> None:
            with progress.part("idle decode worker"):
                records = await _handed_over(client, prompts, options)
                handoffs.idle_s += [_handoff_s(record) for record in records]

        async def busy_round() -> None:
            with progress.part("busy decode worker"):
                await _measure_busy(client, prompts, options, handoffs)

        for index in range(options.pairs):
            rounds = [idle_round, busy_round] if index % 2 == 0 else [busy_round, idle_round]
            for measure_round in rounds:
                await measure_round()
    return handoffs


async def _measure_busy(client: LoadClient, prompts: Prompts, options: HandoffOptions, handoffs: Handoffs) -> None:
    texts = [prompts.text(BACKGROUND_WORDS) for _ in range(options.num_background)]
    traces: list[Trace] = []
    async with Background(client, texts, options.background_tokens) as background:
        await background.wait_until_all_write(SETTLE_TOKENS)
        for _ in range(options.num_requests):
            traces.append(await client.complete(prompts.text(options.num_words), NUM_ANSWER_TOKENS))
        background.require_running()
    for record in await client.records_of(traces):
        handoffs.busy_s.append(_handoff_s(record))
        first_token_s = record.timeline[Lifecycle.FIRST_TOKEN]
        handoffs.running_step_s.append(_gap_around(first_token_s, background.traces[0].token_times_s))


async def _handed_over(client: LoadClient, prompts: Prompts, options: HandoffOptions) -> list[RequestRecord]:
    texts = [prompts.text(options.num_words) for _ in range(options.num_requests)]
    return await client.records_of([await client.complete(text, NUM_ANSWER_TOKENS) for text in texts])


def _handoff_s(record: RequestRecord) -> float:
    if record.prefill_worker is None:
        raise BenchError("a prompt was read by the decode worker itself; ask for more --num-words")
    return record.timeline[Lifecycle.JOINED] - record.timeline[Lifecycle.FIRST_TOKEN]


def _gap_around(moment_s: float, token_times_s: Sequence[float]) -> float:
    """Return the token gap in which `moment_s` lies."""
    for earlier, later in pairwise(token_times_s):
        if earlier <= moment_s < later:
            return later - earlier
    raise BenchError("the background answers did not run during a hand-over; ask for more --background-tokens")


async def _check_bytes(server: diptych.Server, options: HandoffOptions) -> int:
    """Return how many hand-overs ended well where decode compares the blocks with what prefill wrote."""
    prompts = Prompts(options.seed)
    async with LoadClient(server.url, server.model_name) as client:
        texts = [prompts.token_ids(CHECKED_PROMPT_TOKENS) for _ in range(NUM_CHECKED)]
        records = await client.records_of([await client.complete(text, NUM_ANSWER_TOKENS) for text in texts])
    return sum(record.outcome == "length" and record.prefill_worker is not None for record in records)


if __name__ == "__main__":
    run_program("handoff_latency", HandoffOptions, __doc__, measure)
