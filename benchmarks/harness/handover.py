"""What it costs that a prompt is read on another machine: two servers asked in turn, by the servers' own times."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import diptych
from diptych.bench.statistics import estimate_median
from diptych.core.errors import BenchError
from diptych.core.events import Lifecycle, RequestRecord
from harness.client import LoadClient
from harness.prompts import Prompts
from harness.result import Finding
from harness.two_machines import READER

NUM_ANSWER_TOKENS = 4
LEAST_CHECKED_TOKENS = 512
MOST_VISIBLE_SHARE = 0.1
MOST_MODEL_TOKENS = 4_200

Sample = dict[str, float]


@dataclass(frozen=True)
class Handovers:
    """How many prompts, and of which lengths."""

    prompt_tokens: Sequence[int]
    pairs: int
    seed: int


async def alternate(near: diptych.Server, far: diptych.Server, what: Handovers) -> dict[str, Any]:
    """Ask the two in turn; return samples of both sides, by the prompts' lengths."""
    prompts = Prompts(what.seed)
    measured: dict[str, Any] = {}
    async with LoadClient(near.url, near.model_name) as at_near, LoadClient(far.url, far.model_name) as at_far:
        for num_tokens in what.prompt_tokens:
            sides = measured[str(num_tokens)] = {"near": list[Sample](), "far": list[Sample]()}
            for index in range(what.pairs + 1):
                pair = [("near", at_near), ("far", at_far)]
                for name, client in pair if index % 2 else reversed(pair):
                    trace = await client.complete(prompts.token_ids(num_tokens), NUM_ANSWER_TOKENS)
                    (record,) = await client.records_of([trace])
                    if index:  # the first connects, and has shapes compiled
                        sides[name].append(_sample(record, is_far=name == "far"))
    return measured


def _sample(record: RequestRecord, *, is_far: bool) -> Sample:
    reader = record.prefill_worker or ""
    if reader.startswith(READER) is not is_far:
        raise BenchError(f"a prompt was read by {reader or 'the decode worker itself'}")
    times = record.timeline
    return {
        "ttft_s": times[Lifecycle.FIRST_TOKEN] - times[Lifecycle.ARRIVED],
        "prefill_s": times[Lifecycle.FIRST_TOKEN] - times[Lifecycle.PREFILL_STARTED],
        "handover_s": times[Lifecycle.JOINED] - times[Lifecycle.FIRST_TOKEN],
    }


def findings_of(name: str, measured: dict[str, Any], seed: int, *, has_target: bool = True) -> list[Finding]:
    """Return what the samples come to; `name`: of the way that KV took. Long prompts have a target, if any has."""
    findings: list[Finding] = []
    for length, sides in measured.items():
        pairs = list(zip(sides["far"], sides["near"], strict=True))
        what = f"{name}, {length} tokens"
        ttft = [far["ttft_s"] / near["ttft_s"] for far, near in pairs]
        ttft_ms = [(far["ttft_s"] - near["ttft_s"]) * 1e3 for far, near in pairs]
        later_ms = [(far["handover_s"] - near["handover_s"]) * 1e3 for far, near in pairs]
        visible = [(far["handover_s"] - near["handover_s"]) / far["prefill_s"] for far, near in pairs]
        at_most = MOST_VISIBLE_SHARE if has_target and int(length) >= LEAST_CHECKED_TOKENS else None
        findings += [
            Finding(
                what=f"{what}: time to first token, times that in place", measured=estimate_median(ttft, seed), unit=""
            ),
            Finding(
                what=f"{what}: first token, later than in place", measured=estimate_median(ttft_ms, seed), unit="ms"
            ),
            Finding(
                what=f"{what}: hand-over, later than in place", measured=estimate_median(later_ms, seed), unit="ms"
            ),
            Finding(
                what=f"{what}: of the prefill's time, not hidden",
                measured=estimate_median(visible, seed),
                unit="",
                at_most=at_most,
            ),
        ]
    return findings
