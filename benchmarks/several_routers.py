"""Do routers that share workers decide as one? As many requests as decode workers, each to another frontend.

One router gives each worker one of them. Routers that knew of each other only by heartbeats, twice a second, would all
give theirs to the same worker. The requests come some time apart: 0 ms is the worst case, in which all routers decide
before any can have heard of another. Servers with one and with several frontends take turns. The workers are modeled,
whatever --engine says: who gets what is measured, not how long it takes.
"""

import asyncio
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import uvloop

import diptych
from diptych.bench.statistics import estimate_median
from diptych.core.events import Lifecycle
from harness.client import LoadClient, Trace
from harness.options import Options, setting
from harness.program import Outcome, ProgressBar, run_program
from harness.prompts import Prompts
from harness.result import Finding

PROMPT_TOKENS = 40
MAX_FULLEST = 1.2
"""Where requests come at least `SETTLED_MS` apart."""
SETTLED_MS = 5.0
TELL_TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class RoutersOptions(Options):
    """Flags of this benchmark."""

    num_frontends: int = setting(4, "Frontends, and decode workers.")
    gaps_ms: tuple[float, ...] = setting((0.0, 1.0, 5.0, 20.0), "From one request to the next.")
    num_bursts: int = setting(10, "In each pair, for each gap and side.")
    max_tokens: int = setting(40, "Of each answer: none may end before the last one has been placed.")


Samples = dict[tuple[int, float], list[float]]
"""By frontends and gap: how many requests the fullest worker got, on average over the bursts of each pair."""


def measure(options: RoutersOptions, progress: ProgressBar) -> Outcome:
    """Send bursts to both servers in turn, then see how fast a placement is known elsewhere."""
    progress.expect(options.pairs * len(options.gaps_ms) + 2)
    options = replace(options, engine="modeled")
    several = options.num_frontends
    with progress.part("starting"):
        one_server = diptych.serve(options.serve_config(decode=several))
    with one_server, diptych.serve(options.serve_config(decode=several, frontends=several)) as server:
        fullest, told_s = uvloop.run(_measure_all([one_server, server], options, progress))
    findings = [
        Finding(
            what=f"{count} frontends, requests {gap:g} ms apart: how many of {several} the fullest worker got, mean",
            measured=estimate_median(counts, options.seed),
            unit="",
            at_most=MAX_FULLEST if gap >= SETTLED_MS else None,
        )
        for (count, gap), counts in fullest.items()
    ]
    told = estimate_median([one * 1e3 for one in told_s], options.seed)
    findings.append(Finding(what="from a placement until another router shows it, over HTTP", measured=told, unit="ms"))
    samples: dict[str, Any] = {f"{count} frontends, {gap:g} ms": counts for (count, gap), counts in fullest.items()}
    return Outcome(findings, samples | {"told_s": told_s})


async def _measure_all(
    servers: list[diptych.Server], options: RoutersOptions, progress: ProgressBar
) -> tuple[Samples, list[float]]:
    prompts, fullest = Prompts(options.seed), Samples()
    async with AsyncExitStack() as stack:
        sides = [
            [await stack.enter_async_context(LoadClient(url, server.model_name)) for url in server.urls]
            for server in servers
        ]
        for client in (client for side in sides for client in side):
            await client.complete(prompts.token_ids(PROMPT_TOKENS), 2)  # connects
        for index in range(options.pairs):
            for gap_ms in options.gaps_ms:
                with progress.part(f"pair {index + 1}, {gap_ms:g} ms"):
                    for side in sides if index % 2 == 0 else sides[::-1]:
                        counts = [await _fullest(side, prompts, gap_ms, options) for _ in range(options.num_bursts)]
                        fullest.setdefault((len(side), gap_ms), []).append(mean(counts))
        with progress.part("telling"):
            told_s = [await _told_s(sides[1], prompts, options) for _ in range(options.num_bursts * options.pairs)]
    return dict(sorted(fullest.items())), told_s


async def _fullest(side: list[LoadClient], prompts: Prompts, gap_ms: float, options: RoutersOptions) -> int:
    """Send a burst; return how many of its requests the fullest worker got."""
    num_requests = options.num_frontends
    tasks: list[asyncio.Task[Trace]] = []
    begin_s = time.monotonic()
    for number in range(num_requests):
        await asyncio.sleep(max(begin_s + number * gap_ms / 1e3 - time.monotonic(), 0.0))
        client = side[number % len(side)]
        tasks.append(asyncio.create_task(client.complete(prompts.token_ids(PROMPT_TOKENS), options.max_tokens)))
    traces = await asyncio.gather(*tasks)
    owners: Counter[str] = Counter()
    for number, client in enumerate(side):
        records = await client.records_of(traces[number :: len(side)])
        owners.update(record.decode_worker for record in records)
    return max(owners.values())


async def _told_s(side: list[LoadClient], prompts: Prompts, options: RoutersOptions) -> float:
    """Return the time from a placement until another frontend's status shows it: no less than a request of it takes."""
    answer = asyncio.create_task(side[0].complete(prompts.token_ids(PROMPT_TOKENS), options.max_tokens))
    async with asyncio.timeout(TELL_TIMEOUT_S):
        while not (await side[1].status())["num_elsewhere"]:
            pass
        seen_s = time.monotonic()
        (record,) = await side[0].records_of([await answer])
        while (await side[1].status())["num_elsewhere"]:
            pass
    return seen_s - record.timeline[Lifecycle.ROUTED]


if __name__ == "__main__":
    run_program("several_routers", RoutersOptions, __doc__, measure)
