"""Decode steps whose answers follow a JSON schema, against the same batch without one: what do grammar masks cost?

Each pair lets a batch of answers run freely and then bound by the schema, in turn first, and takes the gaps between
their tokens at the client while the batch was complete. The schema asks for a list that no answer gets to the end of.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import uvloop

import diptych
from diptych.bench.statistics import estimate_median, median
from harness.batch_window import BatchWindow, find_full_batch
from harness.client import LoadClient
from harness.options import Options, setting
from harness.program import Outcome, ProgressBar, run_program
from harness.prompts import Prompts
from harness.result import Finding
from harness.serving import client_cores, pinned_to

MAX_RATIO = {16: 1.10}
"""By batch size; others are reported without a target."""
MIN_STEPS = 16
SCHEMA = {
    "type": "array",
    "minItems": 1_000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "price": {"type": "number"},
            "tags": {"type": "array", "items": {"enum": ["new", "used", "rare"]}, "maxItems": 3},
        },
        "required": ["name", "price", "tags"],
        "additionalProperties": False,
    },
}
SAMPLINGS: dict[str, dict[str, Any]] = {"greedy": {}, "top-p 0.9": {"temperature": 1.0, "top_p": 0.9, "seed": 1}}
"""With top-p each token needs its mask; a greedy one only where the model would rather say something else."""
FORMAT = {"type": "json_schema", "json_schema": {"name": "wares", "schema": SCHEMA, "strict": True}}


@dataclass(frozen=True, kw_only=True)
class StructuredOptions(Options):
    """Flags of this benchmark."""

    batch_sizes: tuple[int, ...] = setting((1, 16), "Answers at a time.")
    num_words: int = setting(16, "Words of each prompt.")
    max_tokens: int = setting(128, "Tokens of each answer.")


Case = tuple[int, str]
"""Batch size, and a name in SAMPLINGS."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Median seconds of a step, both ways."""

    free_s: float
    bound_s: float


def measure(options: StructuredOptions, progress: ProgressBar) -> Outcome:
    """Alternate free and bound answers for each batch size in turn."""
    progress.expect(options.pairs * len(options.batch_sizes) * len(SAMPLINGS) + 1)
    with progress.part("starting"):
        server = diptych.serve(options.serve_config(max_num_seqs=max(64, *options.batch_sizes)))
    with server, pinned_to(client_cores(server.status())):
        pairs = uvloop.run(_measure_all(server, options, progress))
    findings = [finding for case, of_case in pairs.items() for finding in _findings(case, of_case, options.seed)]
    samples: dict[str, Any] = {
        f"batch {size}, {sampling}": {
            "free_step_s": [pair.free_s for pair in of_case],
            "bound_step_s": [pair.bound_s for pair in of_case],
        }
        for (size, sampling), of_case in pairs.items()
    }
    return Outcome(findings, samples)


def _findings(case: Case, pairs: list[Pair], seed: int) -> list[Finding]:
    batch_size, sampling = case
    return [
        Finding(
            what=f"decode step at batch {batch_size}, {sampling}, with a JSON schema, times that without",
            measured=estimate_median([pair.bound_s / pair.free_s for pair in pairs], seed),
            unit="",
            at_most=MAX_RATIO.get(batch_size),
        ),
        Finding(
            what=f"step at batch {batch_size}, {sampling}, schema",
            measured=estimate_median([pair.bound_s * 1e3 for pair in pairs], seed),
            unit="ms",
        ),
        Finding(
            what=f"step at batch {batch_size}, {sampling}, free",
            measured=estimate_median([pair.free_s * 1e3 for pair in pairs], seed),
            unit="ms",
        ),
    ]


async def _measure_all(
    server: diptych.Server, options: StructuredOptions, progress: ProgressBar
) -> dict[Case, list[Pair]]:
    prompts = Prompts(options.seed)
    cases = [(batch_size, sampling) for batch_size in options.batch_sizes for sampling in SAMPLINGS]
    pairs: dict[Case, list[Pair]] = {case: [] for case in cases}
    async with LoadClient(server.url, server.model_name) as client:
        await client.complete(prompts.text(options.num_words), 4, response_format=FORMAT)  # compiles the grammar
        for index in range(options.pairs):
            for case in cases:
                with progress.part(f"pair {index + 1}, batch {case[0]}, {case[1]}"):
                    pairs[case].append(await _measure_pair(client, prompts, case, options, index % 2 == 0))
    return pairs


async def _measure_pair(
    client: LoadClient, prompts: Prompts, case: Case, options: StructuredOptions, free_first: bool
) -> Pair:
    batch_size, sampling = case
    texts = [prompts.text(options.num_words) for _ in range(batch_size)]
    free, bound = SAMPLINGS[sampling], SAMPLINGS[sampling] | {"response_format": FORMAT}
    windows = [
        await _run(client, texts, options.max_tokens, parameters)
        for parameters in ((free, bound) if free_first else (bound, free))
    ]
    free_window, bound_window = windows if free_first else reversed(windows)
    return Pair(median(free_window.gaps_s), median(bound_window.gaps_s))


async def _run(client: LoadClient, texts: list[str], max_tokens: int, parameters: dict[str, Any]) -> BatchWindow:
    traces = await asyncio.gather(*(client.complete(text, max_tokens, **parameters) for text in texts))
    return find_full_batch([trace.token_times_s for trace in traces], MIN_STEPS)


if __name__ == "__main__":
    run_program("structured_output", StructuredOptions, __doc__, measure)
