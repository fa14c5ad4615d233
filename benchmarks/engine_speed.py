"""Our engine against openvino_genai's continuous batching, on the same cores, and both against what the cores can do.

Each pair times both on one core, then on all, in turns: a prompt of 512 and one of 4,096 tokens, and decode steps of 32
answers behind 512 tokens. Ours computes a worker's chunks (256 tokens) over its block tables; theirs schedules as it
likes. Both have KV of the same precision. The limit of a step is the roofline of benchmarks/harness/limits.py times the
number of cores: arithmetic at the peak of a float32 product, or weights and KV read once, whichever takes longer.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from diptych.bench.statistics import estimate_median, median
from diptych.calibrate.bare_engine import BareEngine, Place, decode_shapes, prefill_shapes
from diptych.models import resolve
from harness.genai import GenaiEngine
from harness.limits import Limits, measure_limits
from harness.model_work import count_work
from harness.options import Options, setting
from harness.program import Outcome, ProgressBar, run_program
from harness.result import Finding

MOST_TIMES_GENAI = 1.1
KV_OF_NAME = {"openvino bf16 KV": "bf16", "openvino f32 KV": "f32", "openvino u8 KV": "u8", "openvino f16 KV": "f16"}


@dataclass(frozen=True, kw_only=True)
class EngineOptions(Options):
    """Flags of this benchmark."""

    prompts: tuple[int, ...] = setting((512, 4_096), "Tokens of the prompts.")
    batch: int = setting(32, "Answers of a decode step.")
    context: int = setting(512, "Tokens before each of them.")
    steps: int = setting(16, "Decode steps of a sample.")
    cache_gb: int = setting(2, "KV memory of each engine.")


@dataclass(slots=True)
class Job:
    """One thing that both do."""

    name: str
    ours: Callable[[], float]
    theirs: Callable[[], float]
    num_tokens: int
    num_sampled: int
    kv_bytes: float
    num_cores: int
    ours_s: list[float] = field(default_factory=list)
    theirs_s: list[float] = field(default_factory=list)


def measure(options: EngineOptions, progress: ProgressBar) -> Outcome:
    """Alternate both engines."""
    allowed = sorted(os.sched_getaffinity(0))
    core_sets = [allowed[-1:]] + ([allowed] if len(allowed) > 1 else [])
    folder = resolve(options.model)
    with ExitStack() as engines:
        jobs: list[Job] = []
        for cores in core_sets:
            with progress.part(f"starting on {len(cores)} cores"):
                config = options.serve_config(kv_bytes=options.cache_gb * 10**9)
                ours = engines.enter_context(BareEngine(config, Place(cores)))
                kv_dtype = KV_OF_NAME.get(ours.facts.name, "f32")
                theirs = engines.enter_context(GenaiEngine(folder.path, cores, kv_dtype, options.cache_gb))
            jobs += _jobs(options, ours, theirs, len(cores))
        progress.expect(len(core_sets) + (options.pairs + 1) * len(jobs))
        for index in range(options.pairs + 1):  # the first builds what is built once, and is not kept
            for job in jobs:
                with progress.part(job.name):
                    _measure_pair(job, is_theirs_first=index % 2 == 1, is_kept=index > 0)
    limits = measure_limits(allowed[-1])
    work = count_work(folder.path)
    findings = [
        finding
        for job in jobs
        for finding in _findings(
            job, work.limit_s(job.num_tokens, job.num_sampled, job.kv_bytes, _of_cores(limits, job)), options.seed
        )
    ]
    samples: dict[str, Any] = {
        "jobs": [{"name": job.name, "ours_s": job.ours_s, "genai_s": job.theirs_s} for job in jobs],
        "flops_per_s_a_core": limits.flops_per_s,
        "read_bytes_per_s_a_core": limits.read_bytes_per_s,
        "work": work._asdict(),
    }
    return Outcome(findings, samples)


def _of_cores(limits: Limits, job: Job) -> Limits:
    return Limits(limits.flops_per_s * job.num_cores, limits.read_bytes_per_s * job.num_cores)


def _jobs(options: EngineOptions, ours: BareEngine, theirs: GenaiEngine, num_cores: int) -> list[Job]:
    on_cores = f"on {num_cores} core{'s' if num_cores > 1 else ''}"
    chunk_tokens = options.serve_config().chunk_tokens
    token_bytes = ours.facts.token_bytes

    def prefill(num_tokens: int) -> Job:
        shapes = prefill_shapes(num_tokens, chunk_tokens)
        return Job(
            f"prefill of {num_tokens:,} tokens {on_cores}",
            lambda: sum(ours.time_steps(shapes)),
            lambda: theirs.time_prefill(num_tokens),
            num_tokens,
            1,
            num_tokens * token_bytes,
            num_cores,
        )

    shapes = decode_shapes([options.context] * options.batch, options.steps)
    decode = Job(
        f"decode step of {options.batch} answers at context {options.context} {on_cores}",
        lambda: median(ours.time_steps(shapes)),
        lambda: median(theirs.time_decode(options.batch, options.context, options.steps)),
        options.batch,
        options.batch,
        options.batch * options.context * token_bytes,
        num_cores,
    )
    return [*map(prefill, options.prompts), decode]


def _measure_pair(job: Job, *, is_theirs_first: bool, is_kept: bool) -> None:
    if is_theirs_first:
        theirs_s = job.theirs()
        ours_s = job.ours()
    else:
        ours_s = job.ours()
        theirs_s = job.theirs()
    if is_kept:
        job.ours_s.append(ours_s)
        job.theirs_s.append(theirs_s)


def _findings(job: Job, limit_s: float, seed: int) -> list[Finding]:
    def in_ms(seconds: Sequence[float]) -> list[float]:
        return [value * 1e3 for value in seconds]

    ratios = [ours / theirs for ours, theirs in zip(job.ours_s, job.theirs_s, strict=True)]
    return [
        Finding(
            what=f"{job.name}, times openvino_genai's",
            measured=estimate_median(ratios, seed),
            unit="",
            at_most=MOST_TIMES_GENAI,
        ),
        Finding(what="  ours", measured=estimate_median(in_ms(job.ours_s), seed), unit="ms"),
        Finding(what="  openvino_genai", measured=estimate_median(in_ms(job.theirs_s), seed), unit="ms"),
        Finding(
            what="  ours, times the roofline",
            measured=estimate_median([seconds / limit_s for seconds in job.ours_s], seed),
            unit="",
        ),
    ]


if __name__ == "__main__":
    run_program("engine_speed", EngineOptions, __doc__, measure)
