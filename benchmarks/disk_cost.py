"""What the disk tier costs decode steps: token gaps with `--disk-kv-bytes` and without, under eviction pressure.

Two servers on the same cores take turns, one with a disk tier and one without, each with so little memory for KV that
prompts which are read meanwhile evict each other. On each, answers run while prompts come at a fixed rate: *fresh*
ones, whose blocks are stored before they are evicted, and *returning* ones, which are on disk and are loaded, or else
read again. The prefill worker reads them on the other core, and gaps are those of the answers at their client. With
`--kv-store` the same of a store that machines share, in place of the disk.
"""

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import uvloop

import diptych
from diptych.bench.statistics import estimate_median, percentile
from diptych.core.errors import BenchError
from harness.batch_window import SETTLE_TOKENS, gaps_between
from harness.client import Background, LoadClient
from harness.options import Options, setting
from harness.program import Outcome, ProgressBar, run_program
from harness.prompts import Prompts
from harness.result import Finding, single
from harness.serving import client_cores, pinned_to

MAX_RATIO = 1.1
PERCENTS = (50.0, 99.0)
NUM_WORDS = 16
MIN_GAPS = 20
DISK_BYTES = 8 * 10**9
KINDS = ("fresh", "returning")


@dataclass(frozen=True, kw_only=True)
class DiskOptions(Options):
    """Flags of this benchmark."""

    num_answers: int = setting(8, "Answers that run at a time.")
    prompt_tokens: int = setting(512, "Tokens of the prompts that evict each other.")
    prompts_per_s: float = setting(1.0, "How many of them come in a second.")
    num_prompts: int = setting(48, "Different ones among those that return; more than memory holds.")
    phase_s: float = setting(15.0, "Seconds of each phase.")
    answer_tokens: int = setting(1_200, "Tokens that an answer may have; enough for a phase.")
    kv_mb: float = setting(400.0, "Memory for KV, MB.")
    kv_store: str = setting("", "Store to measure in place of a disk, mooncake://HOST:PORT of its master.")
    disk_dir: Path = setting(Path("/var/tmp"), "Folder on the disk to measure; what is written there is removed.")  # noqa: RUF009, S108  a field; a private folder is made in it


@dataclass
class Phase:
    """One phase on one server."""

    gaps_s: list[float] = field(default_factory=list)
    num_stored: int = 0
    """Blocks, meanwhile, as the last heartbeats tell."""
    num_loaded: int = 0
    num_evicted: int = 0
    """From memory."""


@dataclass
class Pair:
    """The same phase on both servers."""

    kind: str
    with_disk: Phase
    without_disk: Phase

    def ratio(self, percent: float) -> float:
        """Return how many times as long gaps are with a disk tier, at that percentile of both."""
        return percentile(self.with_disk.gaps_s, percent) / percentile(self.without_disk.gaps_s, percent)


def measure(options: DiskOptions, progress: ProgressBar) -> Outcome:
    """Alternate servers, phase by phase."""
    progress.expect(4 + 2 * len(KINDS) * options.pairs)
    with ExitStack() as stack, tempfile.TemporaryDirectory(dir=options.disk_dir, prefix="diptych-bench-") as folder:
        servers: dict[bool, diptych.Server] = {}
        for has_disk in (True, False):
            with progress.part(f"starting {'with' if has_disk else 'without'} a disk tier"):
                servers[has_disk] = stack.enter_context(_serving(options, Path(folder) if has_disk else None))
        stack.enter_context(pinned_to(client_cores(servers[True].status())))
        pairs = uvloop.run(_measure_pairs(servers, options, progress))
        stack.close()  # before the folder goes
    return Outcome(_findings(pairs, options.seed), {"pairs": [_raw(pair) for pair in pairs]})


@contextmanager
def _serving(options: DiskOptions, root: Path | None) -> Iterator[diptych.Server]:
    store, disk = {"kv_store": options.kv_store}, {"disk_kv_bytes": DISK_BYTES, "disk_kv_dir": root}
    tier: dict[str, Any] = {} if root is None else store if options.kv_store else disk
    config = options.serve_config(admission="none", **tier)
    # As asked also with the modeled engine: without pressure there is nothing to measure.
    with diptych.serve(config.model_copy(update={"kv_bytes": round(options.kv_mb * 1e6)})) as server:
        yield server


async def _measure_pairs(
    servers: dict[bool, diptych.Server], options: DiskOptions, progress: ProgressBar
) -> list[Pair]:
    prompts = Prompts(options.seed)
    known = [prompts.token_ids(options.prompt_tokens) for _ in range(options.num_prompts)]
    for has_disk, server in servers.items():
        with progress.part(f"filling memory {'and disk' if has_disk else 'alone'}"):
            async with LoadClient(server.url, server.model_name) as client:
                for prompt in known:
                    await client.complete(prompt, 1)
    returning = cycle(known)
    pairs: list[Pair] = []
    for index in range(options.pairs):
        for kind in KINDS:
            phases: dict[bool, Phase] = {}
            num_prompts = max(round(options.phase_s * options.prompts_per_s), 1)
            batch = [
                prompts.token_ids(options.prompt_tokens) if kind == "fresh" else next(returning)
                for _ in range(num_prompts)
            ]
            for has_disk in (True, False) if index % 2 == 0 else (False, True):
                with progress.part(f"pair {index + 1}, {kind}, {'with' if has_disk else 'without'} disk"):
                    async with LoadClient(servers[has_disk].url, servers[has_disk].model_name) as client:
                        phases[has_disk] = await _measure_phase(client, prompts, batch, options)
            pairs.append(Pair(kind, phases[True], phases[False]))
    _require_pressure(pairs)
    return pairs


async def _measure_phase(client: LoadClient, prompts: Prompts, batch: list[list[int]], options: DiskOptions) -> Phase:
    phase = Phase()
    texts = [prompts.text(NUM_WORDS) for _ in range(options.num_answers)]
    async with Background(client, texts, options.answer_tokens) as background:
        await background.wait_until_all_write(SETTLE_TOKENS)
        before = await _cache_counts(client)
        begin_s = time.monotonic()
        await _send(client, batch, options.prompts_per_s)
        background.require_running()
        end_s = time.monotonic()
        after = await _cache_counts(client)
    for trace in background.traces:
        phase.gaps_s += gaps_between(trace.token_times_s, begin_s, end_s)
    if len(phase.gaps_s) < MIN_GAPS:
        raise BenchError(f"{len(phase.gaps_s)} tokens in a phase are too few; ask for more --phase-s")
    phase.num_stored, phase.num_loaded, phase.num_evicted = (
        later - earlier for earlier, later in zip(before, after, strict=True)
    )
    return phase


async def _send(client: LoadClient, batch: list[list[int]], rate_per_s: float) -> None:
    """Send prompts at a fixed rate, whatever becomes of those before; return when all have been read."""
    async with asyncio.TaskGroup() as tasks:
        for prompt in batch:
            tasks.create_task(client.complete(prompt, 1))
            await asyncio.sleep(1.0 / rate_per_s)


async def _cache_counts(client: LoadClient) -> tuple[int, int, int]:
    """Return how many blocks have been stored, loaded and evicted from memory, as far as heartbeats tell."""
    workers = (await client.status())["workers"].values()
    caches = [worker["status"]["cache"] for worker in workers if worker["status"]["cache"] is not None]
    tiers = [tier for cache in caches for tier in cache["tiers"]]

    def total(statuses: list[dict[str, Any]], name: str) -> int:
        return sum(int(status[name]) for status in statuses)

    return total(tiers, "num_stored_blocks"), total(tiers, "num_loaded_blocks"), total(caches, "num_evicted_blocks")


def _require_pressure(pairs: list[Pair]) -> None:
    """Raises: BenchError if nothing was evicted, stored or loaded: then there was nothing to measure."""
    counts: list[tuple[str, Callable[[Phase], int]]] = [
        ("evicted from memory", lambda phase: phase.num_evicted),
        ("stored", lambda phase: phase.num_stored),
        ("loaded", lambda phase: phase.num_loaded),
    ]
    for what, of_phase in counts:
        if not sum(of_phase(pair.with_disk) for pair in pairs):
            raise BenchError(f"no block was {what}; ask for less --kv-mb, or for more --num-prompts and --pairs")


def _findings(pairs: list[Pair], seed: int) -> list[Finding]:
    findings: list[Finding] = []
    for kind in KINDS:
        of_kind = [pair for pair in pairs if pair.kind == kind]
        for percent in PERCENTS:
            ratios = estimate_median([pair.ratio(percent) for pair in of_kind], seed)
            what = f"{kind} prompts: token gap with a disk tier over without, p{percent:.0f}"
            findings.append(Finding(what=what, measured=ratios, unit="", at_most=MAX_RATIO))
        for name, gaps in (
            ("with", [pair.with_disk.gaps_s for pair in of_kind]),
            ("without", [pair.without_disk.gaps_s for pair in of_kind]),
        ):
            medians = estimate_median([percentile(one, 50.0) * 1e3 for one in gaps], seed)
            what = f"{kind} prompts: median token gap {name} a disk tier"
            findings.append(Finding(what=what, measured=medians, unit="ms"))
        moved = {
            "stored": sum(pair.with_disk.num_stored for pair in of_kind),
            "loaded": sum(pair.with_disk.num_loaded for pair in of_kind),
        }
        findings += [
            Finding(what=f"{kind} prompts: blocks {name}", measured=single(number), unit="")
            for name, number in moved.items()
        ]
    return findings


def _raw(pair: Pair) -> dict[str, Any]:
    return {"kind": pair.kind, "with_disk": vars(pair.with_disk), "without_disk": vars(pair.without_disk)}


if __name__ == "__main__":
    run_program("disk_cost", DiskOptions, __doc__, measure)
