"""Prefill through HTTP against the bare engine: how much of the engine's speed arrives at the client?

Each pair sends one fresh prompt (no prefix hit) with max_tokens=1 through the whole server, and has a bare engine on
the prefill worker's core compute the same chunks. Frontend and client share that core, as they do on a small machine.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import uvloop

import diptych
from diptych.bench.statistics import estimate_median
from diptych.calibrate.bare_engine import BareEngine, prefill_shapes
from diptych.core.errors import BenchError
from diptych.core.events import Lifecycle
from diptych.core.messages import Role
from harness.client import LoadClient, Trace
from harness.options import Options, setting
from harness.program import Outcome, ProgressBar, run_program
from harness.prompts import Prompts
from harness.result import Finding
from harness.serving import client_cores, pinned_to, place_of

MIN_SHARE = 0.90


@dataclass(frozen=True, kw_only=True)
class PrefillOptions(Options):
    """Flags of this benchmark."""

    num_tokens: int = setting(1_000, "Tokens of each prompt.")


@dataclass(frozen=True, slots=True)
class Pair:
    """Seconds for one prompt, both ways."""

    http_s: float
    """From sending the request to the end of its answer, at the client."""
    compute_s: float
    """Of that, from the prefill worker's first step to the first token."""
    bare_s: float


def measure(options: PrefillOptions, progress: ProgressBar) -> Outcome:
    """Alternate server and bare engine."""
    progress.expect(options.pairs + 1)
    config = options.serve_config()
    with progress.part("starting"):
        server = diptych.serve(config)
    with server:
        status = server.status()
        with BareEngine(config, place_of(status, Role.PREFILL)) as engine, pinned_to(client_cores(status)):
            pairs = uvloop.run(_measure_pairs(server, engine, options, progress))
    num_tokens = options.num_tokens
    shares = estimate_median([pair.bare_s / pair.http_s for pair in pairs], options.seed)
    http = estimate_median([num_tokens / pair.http_s for pair in pairs], options.seed)
    bare = estimate_median([num_tokens / pair.bare_s for pair in pairs], options.seed)
    path = estimate_median([(pair.http_s - pair.compute_s) * 1e3 for pair in pairs], options.seed)
    findings = [
        Finding(
            what=f"prefill of {num_tokens} tokens through HTTP, share of the bare engine's speed",
            measured=shares,
            unit="",
            at_least=MIN_SHARE,
        ),
        Finding(what="speed through HTTP", measured=http, unit="tokens/s"),
        Finding(what="speed of the bare engine", measured=bare, unit="tokens/s"),
        Finding(what="request time outside of the prefill worker's steps", measured=path, unit="ms"),
    ]
    samples: dict[str, Any] = {
        "http_s": [pair.http_s for pair in pairs],
        "prefill_worker_s": [pair.compute_s for pair in pairs],
        "bare_engine_s": [pair.bare_s for pair in pairs],
        "bare_engine": engine.facts.name,
    }
    return Outcome(findings, samples)


async def _measure_pairs(
    server: diptych.Server, engine: BareEngine, options: PrefillOptions, progress: ProgressBar
) -> list[Pair]:
    prompts, pairs = Prompts(options.seed), []
    async with LoadClient(server.url, server.model_name) as client:
        await client.complete(prompts.token_ids(options.num_tokens), 1)  # connects, and builds what is built once
        for index in range(options.pairs):
            with progress.part(f"pair {index + 1}"):
                pairs.append(await _measure_pair(client, engine, prompts, options, is_bare_first=index % 2 == 1))
    return pairs


async def _measure_pair(
    client: LoadClient, engine: BareEngine, prompts: Prompts, options: PrefillOptions, *, is_bare_first: bool
) -> Pair:
    async def through_http() -> Trace:
        return await client.complete(prompts.token_ids(options.num_tokens), 1)

    chunk_tokens = options.serve_config().chunk_tokens
    shapes = prefill_shapes(options.num_tokens, chunk_tokens)
    if is_bare_first:
        bare_s = sum(await asyncio.to_thread(engine.time_steps, shapes))
        trace = await through_http()
    else:
        trace = await through_http()
        bare_s = sum(await asyncio.to_thread(engine.time_steps, shapes))
    (record,) = await client.records_of([trace])
    if record.num_cached_tokens or record.prefill_worker is None:
        raise BenchError("a prompt hit the prefix cache or was not read by the prefill worker; change --num-tokens")
    compute_s = record.timeline[Lifecycle.FIRST_TOKEN] - record.timeline[Lifecycle.PREFILL_STARTED]
    return Pair(trace.ended_s - trace.sent_s, compute_s, bare_s)


if __name__ == "__main__":
    run_program("prefill_speed", PrefillOptions, __doc__, measure)
