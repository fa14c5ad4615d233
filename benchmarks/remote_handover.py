"""What it costs that a prompt is read on another machine than its answer is written on.

Two servers on the same two cores, asked in turn: one hands over in place (one segment, nothing moves), the other has
its prefill worker on a machine of its own (two launchers, two segments, one router; `--kv-transport` of each in turn).
What is not hidden behind computing is how much longer the hand-over takes, from the first token to the start of the
decode step that goes on from it; it is told as a share of the time in which the prompt is read. Times are the servers'
own, from GET /diptych/requests.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import uvloop

import diptych
from diptych.bench.statistics import estimate_median
from diptych.core.errors import BenchError
from diptych.core.events import Lifecycle, RequestRecord
from harness.client import LoadClient
from harness.options import Options, setting
from harness.program import Outcome, ProgressBar, run_program
from harness.prompts import Prompts
from harness.result import Finding
from harness.two_machines import READER, TwoMachines

LIBRARIES = {"mooncake": "mooncake.engine", "nixl": "nixl._api"}
"""Without which KV would go by TCP."""
NUM_ANSWER_TOKENS = 4
LEAST_CHECKED_TOKENS = 512
MOST_VISIBLE_SHARE = 0.1
MOST_MODEL_TOKENS = 4_200


@dataclass(frozen=True, kw_only=True)
class HandoverOptions(Options):
    """Flags of this benchmark."""

    transports: tuple[str, ...] = setting(("tcp", "mooncake", "nixl"), "By which KV moves.")
    prompt_tokens: tuple[int, ...] = setting((32, 128, 512, 1024, 2048, 4096), "Lengths of prompts.")


Sample = dict[str, float]


def measure(options: HandoverOptions, progress: ProgressBar) -> Outcome:
    """Alternate the two servers, for each transport."""
    progress.expect(len(options.transports))
    findings: list[Finding] = []
    samples: dict[str, Any] = {}
    for transport in options.transports:
        if transport in LIBRARIES and find_spec(LIBRARIES[transport]) is None:
            samples[transport] = {"why_not": "its library is not installed"}
            continue
        with progress.part(transport), ExitStack() as running:
            config = options.serve_config(kv_transport=transport, kv_bytes=500_000_000, max_model_len=MOST_MODEL_TOKENS)
            near = running.enter_context(diptych.serve(config.model_copy(update={"cores": [0, 1]})))
            far = running.enter_context(TwoMachines(config.model_copy(update={"cores": [1]}), core=0))
            measured = uvloop.run(_alternate(near, far.server, options))
        samples[transport] = measured
        for num_tokens, sides in measured.items():
            findings += _findings(transport, int(num_tokens), sides, options.seed)
    return Outcome(findings, samples)


async def _alternate(near: diptych.Server, far: diptych.Server, options: HandoverOptions) -> dict[str, Any]:
    prompts = Prompts(options.seed)
    measured: dict[str, Any] = {}
    async with LoadClient(near.url, near.model_name) as at_near, LoadClient(far.url, far.model_name) as at_far:
        for num_tokens in options.prompt_tokens:
            sides = measured[str(num_tokens)] = {"near": list[Sample](), "far": list[Sample]()}
            for index in range(options.pairs + 1):
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


def _findings(transport: str, num_tokens: int, sides: dict[str, list[Sample]], seed: int) -> list[Finding]:
    pairs = list(zip(sides["far"], sides["near"], strict=True))
    what = f"{transport}, {num_tokens} tokens"
    ttft = [far["ttft_s"] / near["ttft_s"] for far, near in pairs]
    later_ms = [(far["handover_s"] - near["handover_s"]) * 1e3 for far, near in pairs]
    visible = [(far["handover_s"] - near["handover_s"]) / far["prefill_s"] for far, near in pairs]
    is_checked = num_tokens >= LEAST_CHECKED_TOKENS
    return [
        Finding(
            what=f"{what}: time to first token, times that in place", measured=estimate_median(ttft, seed), unit=""
        ),
        Finding(what=f"{what}: hand-over, later than in place", measured=estimate_median(later_ms, seed), unit="ms"),
        Finding(
            what=f"{what}: of the prefill's time, not hidden",
            measured=estimate_median(visible, seed),
            unit="",
            at_most=MOST_VISIBLE_SHARE if is_checked else None,
        ),
    ]


if __name__ == "__main__":
    run_program("remote_handover", HandoverOptions, __doc__, measure)
