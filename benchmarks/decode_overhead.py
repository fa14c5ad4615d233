"""Decode steps through HTTP against the bare engine: what does serving add to a step?

Each pair lets a batch of answers run through the whole server and takes the gaps between their tokens at the client,
from when all are being written to when the first ends. Then a bare engine on the decode worker's core replays the same
steps: the same batch, the same contexts, growing alike. Client and frontend keep off that core.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import uvloop

import diptych
from diptych.bench.statistics import estimate_median, median
from diptych.calibrate.bare_engine import BareEngine, decode_shapes
from diptych.core.messages import Role
from harness.batch_window import find_full_batch
from harness.client import LoadClient
from harness.options import Options, setting
from harness.program import Outcome, ProgressBar, run_program
from harness.prompts import Prompts
from harness.result import Finding
from harness.serving import client_cores, pinned_to, place_of

MAX_RATIO = {1: 1.15, 8: 1.10, 32: 1.10}
"""By batch size; others are reported without a target."""
MIN_STEPS = 16
NUM_WARM_UP_STEPS = 3
"""Replayed before those that count, as the server's window begins some steps after the batch is complete."""


@dataclass(frozen=True, kw_only=True)
class DecodeOptions(Options):
    """Flags of this benchmark."""

    batch_sizes: tuple[int, ...] = setting((1, 8, 32), "Answers at a time.")
    num_words: int = setting(16, "Words of each prompt.")
    max_tokens: int = setting(128, "Tokens of each answer.")


@dataclass(frozen=True, slots=True)
class Pair:
    """Median seconds of a step, both ways, and the batch that it was."""

    server_s: float
    bare_s: float
    contexts: list[int]
    """Tokens of each sequence when the window began."""
    num_steps: int


def measure(options: DecodeOptions, progress: ProgressBar) -> Outcome:
    """Alternate server and bare engine for each batch size in turn."""
    progress.expect(options.pairs * len(options.batch_sizes) + 1)
    config = options.serve_config(max_num_seqs=max(64, *options.batch_sizes))
    with progress.part("starting"):
        server = diptych.serve(config)
    with server:
        status = server.status()
        with BareEngine(config, place_of(status, Role.DECODE)) as engine, pinned_to(client_cores(status)):
            pairs = uvloop.run(_measure_all(server, engine, options, progress))
    findings: list[Finding] = []
    for batch_size, of_size in pairs.items():
        findings += _findings(batch_size, of_size, options.seed)
    samples: dict[str, Any] = {
        f"batch_{batch_size}": {
            "server_step_s": [pair.server_s for pair in of_size],
            "bare_step_s": [pair.bare_s for pair in of_size],
            "contexts_tokens": [pair.contexts for pair in of_size],
            "num_steps": [pair.num_steps for pair in of_size],
        }
        for batch_size, of_size in pairs.items()
    }
    return Outcome(findings, samples)


def _findings(batch_size: int, pairs: list[Pair], seed: int) -> list[Finding]:
    ratios = estimate_median([pair.server_s / pair.bare_s for pair in pairs], seed)
    server = estimate_median([pair.server_s * 1e3 for pair in pairs], seed)
    bare = estimate_median([pair.bare_s * 1e3 for pair in pairs], seed)
    return [
        Finding(
            what=f"decode step at batch {batch_size} through HTTP, times the bare engine's",
            measured=ratios,
            unit="",
            at_most=MAX_RATIO.get(batch_size),
        ),
        Finding(what=f"step at batch {batch_size}, server", measured=server, unit="ms"),
        Finding(what=f"step at batch {batch_size}, bare engine", measured=bare, unit="ms"),
    ]


async def _measure_all(
    server: diptych.Server, engine: BareEngine, options: DecodeOptions, progress: ProgressBar
) -> dict[int, list[Pair]]:
    prompts = Prompts(options.seed)
    pairs: dict[int, list[Pair]] = {batch_size: [] for batch_size in options.batch_sizes}
    async with LoadClient(server.url, server.model_name) as client:
        await client.complete(prompts.text(options.num_words), 4)  # connects
        for index in range(options.pairs):
            for batch_size in options.batch_sizes:
                with progress.part(f"pair {index + 1}, batch {batch_size}"):
                    pairs[batch_size].append(await _measure_pair(client, engine, prompts, batch_size, options))
    return pairs


async def _measure_pair(
    client: LoadClient, engine: BareEngine, prompts: Prompts, batch_size: int, options: DecodeOptions
) -> Pair:
    texts = [prompts.text(options.num_words) for _ in range(batch_size)]
    traces = await asyncio.gather(*(client.complete(text, options.max_tokens) for text in texts))
    window = find_full_batch([trace.token_times_s for trace in traces], MIN_STEPS)
    records = await client.records_of(list(traces))
    contexts = [
        record.num_prompt_tokens + num_tokens
        for record, num_tokens in zip(records, window.num_tokens_before, strict=True)
    ]
    first = [context - NUM_WARM_UP_STEPS for context in contexts]
    durations = await asyncio.to_thread(engine.time_steps, decode_shapes(first, NUM_WARM_UP_STEPS + window.num_steps))
    return Pair(median(window.gaps_s), median(durations[NUM_WARM_UP_STEPS:]), contexts, window.num_steps)


if __name__ == "__main__":
    run_program("decode_overhead", DecodeOptions, __doc__, measure)
