"""How soon a server is ready, what the path around the engine adds to TTFT, and how much memory everything takes.

Starts of the real command line (the model in the cache, the first start not counted) alternate with starts through the
library, whose stages are timed. The last command-line server then gets one chat request at a time (added TTFT: arrival
to prefill start, plus first token to the response's first byte at the client) and, after a load, its memory is summed
(PSS: shared pages counted once) over launcher, frontend and workers.
"""

import asyncio
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import uvloop

import diptych
from diptych.bench.statistics import estimate_median
from diptych.core.events import Lifecycle, RequestRecord
from diptych.launch.server import Remote, fetch_status
from harness.cli_server import CliServer
from harness.client import LoadClient, Trace
from harness.options import Options, setting
from harness.process_memory import proportional_bytes, tree_of
from harness.program import Outcome, ProgressBar, run_program
from harness.prompts import Prompts
from harness.result import Finding, single
from harness.serving import client_cores, pinned_to

MAX_READY_S = 10.0
MAX_ADDED_TTFT_MS = 5.0
MAX_MEMORY_GB = 2.5
TARGET_PROMPT_TOKENS = 256
"""The TTFT target is for prompts up to this long."""
CHAT_OVERHEAD_TOKENS = 48
"""About what the chat template and the words around a prompt's random ones take."""
LOAD_PROMPT_TOKENS, LOAD_ANSWERS = 1_000, 8


@dataclass(frozen=True, kw_only=True)
class StartupOptions(Options):
    """Flags of this benchmark."""

    num_requests: int = setting(20, "Requests of each prompt size, for TTFT.")
    prompt_tokens: tuple[int, ...] = setting((64, 128, 256), "Sizes of prompts, about; at least 64.")


@dataclass
class Samples:
    """All that is measured."""

    cli_ready_s: list[float] = field(default_factory=list)
    cli_before_launcher_s: list[float] = field(default_factory=list)
    """Python, imports, finding the model; and printing."""
    library_stages_s: dict[str, list[float]] = field(default_factory=dict)
    memory_bytes: dict[str, int] = field(default_factory=dict)
    ttft: dict[int, list["AddedTtft"]] = field(default_factory=dict)
    """By size asked for."""


@dataclass(frozen=True, slots=True)
class AddedTtft:
    """Seconds of one request's way to its first token that no engine computed in."""

    num_prompt_tokens: int
    request_way_s: float
    """From the client's send to `arrived`: HTTP, and reading the body."""
    before_prefill_s: float
    """`arrived` to `prefill_started`: template, tokenizer, router, decode worker's reservation, grant."""
    prefill_s: float
    answer_way_s: float
    """`first_token` to the response's first byte at the client."""

    @property
    def added_s(self) -> float:
        """What the target is about."""
        return self.before_prefill_s + self.answer_way_s


def measure(options: StartupOptions, progress: ProgressBar) -> Outcome:
    """Start again and again; then measure the last server."""
    progress.expect(2 * options.pairs + 3)
    arguments = _arguments(options)
    samples = Samples()
    with progress.part("a start that fills the page cache"), CliServer(arguments):
        pass
    for index in range(options.pairs):
        with progress.part(f"library, start {index + 1}"):
            _start_library(options, samples)
        with progress.part(f"command line, start {index + 1}"):
            server = CliServer(arguments)
        with server:
            samples.cli_ready_s.append(server.ready_after_s)
            samples.cli_before_launcher_s.append(server.ready_after_s - server.launcher_s)
            if index == options.pairs - 1:
                _measure_server(server, options, samples, progress)
    return Outcome(_findings(samples, options), _raw(samples))


def _arguments(options: StartupOptions) -> list[str]:
    """Return the flags of `diptych serve` that stand for the same configuration as the library gets."""
    config = options.serve_config()
    given = {"model": config.model, "engine": config.engine, "kv-bytes": config.kv_bytes}
    given["modeled-time-scale"] = config.modeled_time_scale
    return [text for name, value in given.items() for text in (f"--{name}", str(value))]


def _start_library(options: StartupOptions, samples: Samples) -> None:
    begins: list[tuple[str, float]] = [("finding the model", time.monotonic())]
    with diptych.serve(options.serve_config(), on_stage=lambda stage: begins.append((stage, time.monotonic()))):
        begins.append(("", time.monotonic()))
    for (stage, begin_s), (_, end_s) in pairwise(begins):
        samples.library_stages_s.setdefault(stage, []).append(end_s - begin_s)


def _measure_server(server: CliServer, options: StartupOptions, samples: Samples, progress: ProgressBar) -> None:
    with pinned_to(client_cores(fetch_status(Remote(server.url)))):
        samples.memory_bytes["ready"] = sum(map(proportional_bytes, tree_of(server.pid)))
        with progress.part("added TTFT"):
            samples.ttft = uvloop.run(_measure_ttft(server, options))
        with progress.part("memory after load"):
            uvloop.run(_load(server, options))
            samples.memory_bytes["after load"] = sum(map(proportional_bytes, tree_of(server.pid)))


async def _measure_ttft(server: CliServer, options: StartupOptions) -> dict[int, list[AddedTtft]]:
    prompts = Prompts(options.seed)
    traces: dict[int, list[Trace]] = {size: [] for size in options.prompt_tokens}
    async with LoadClient(server.url, server.model) as client:
        await client.chat(prompts.text(CHAT_OVERHEAD_TOKENS), 1)  # connects
        for _ in range(options.num_requests):
            for size in options.prompt_tokens:
                text = prompts.text(max(size - CHAT_OVERHEAD_TOKENS, 1))
                traces[size].append(await client.chat(text, 1))
        return {
            size: [
                _added(trace, record) for trace, record in zip(of_size, await client.records_of(of_size), strict=True)
            ]
            for size, of_size in traces.items()
        }


def _added(trace: Trace, record: RequestRecord) -> AddedTtft:
    timeline = record.timeline
    return AddedTtft(
        record.num_prompt_tokens,
        timeline[Lifecycle.ARRIVED] - trace.sent_s,
        timeline[Lifecycle.PREFILL_STARTED] - timeline[Lifecycle.ARRIVED],
        timeline[Lifecycle.FIRST_TOKEN] - timeline[Lifecycle.PREFILL_STARTED],
        trace.first_byte_s - timeline[Lifecycle.FIRST_TOKEN],
    )


async def _load(server: CliServer, options: StartupOptions) -> None:
    """Let every part of the server work once: a long prompt, and some answers side by side."""
    prompts = Prompts(options.seed + 1)
    async with LoadClient(server.url, server.model) as client:
        await client.complete(prompts.token_ids(LOAD_PROMPT_TOKENS), 1)
        await asyncio.gather(*(client.complete(prompts.text(16), 32) for _ in range(LOAD_ANSWERS)))


def _findings(samples: Samples, options: StartupOptions) -> list[Finding]:
    seed = options.seed
    ready = estimate_median(samples.cli_ready_s, seed)
    findings = [
        Finding(what="`diptych serve` to ready, warm cache", measured=ready, unit="s", at_most=MAX_READY_S),
        Finding(
            what="of it: Python, imports, finding the model",
            measured=estimate_median(samples.cli_before_launcher_s, seed),
            unit="s",
        ),
    ]
    for stage, durations in samples.library_stages_s.items():
        findings.append(Finding(what=f"of a start: {stage}", measured=estimate_median(durations, seed), unit="s"))
    for size, requests in samples.ttft.items():
        added = estimate_median([request.added_s * 1e3 for request in requests], seed)
        most_tokens = max(request.num_prompt_tokens for request in requests)
        limit = MAX_ADDED_TTFT_MS if size <= TARGET_PROMPT_TOKENS else None
        findings.append(
            Finding(
                what=f"added TTFT, prompts up to {most_tokens} tokens, p50", measured=added, unit="ms", at_most=limit
            )
        )
        way = estimate_median([request.request_way_s * 1e3 for request in requests], seed)
        findings.append(Finding(what="client's send to `arrived`, the same requests", measured=way, unit="ms"))
    for moment, num_bytes in samples.memory_bytes.items():
        memory = single(num_bytes / 1e9)
        findings.append(
            Finding(what=f"memory of all processes, {moment}", measured=memory, unit="GB", at_most=MAX_MEMORY_GB)
        )
    return findings


def _raw(samples: Samples) -> dict[str, Any]:
    return {
        "cli_ready_s": samples.cli_ready_s,
        "cli_before_launcher_s": samples.cli_before_launcher_s,
        "library_stages_s": samples.library_stages_s,
        "memory_bytes": samples.memory_bytes,
        "ttft": {
            str(size): [
                {
                    "num_prompt_tokens": request.num_prompt_tokens,
                    "request_way_s": request.request_way_s,
                    "before_prefill_s": request.before_prefill_s,
                    "prefill_s": request.prefill_s,
                    "answer_way_s": request.answer_way_s,
                }
                for request in requests
            ]
            for size, requests in samples.ttft.items()
        },
    }


if __name__ == "__main__":
    run_program("startup_and_memory", StartupOptions, __doc__, measure)
