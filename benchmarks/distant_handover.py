"""The same as `remote_handover.py`, where the machines are some way apart: a wire with a delay and a rate between them.

The machine that reads prompts is in a network namespace of its own; all that goes there or comes from there takes
`--delays-ms` one way, at `--gbit-per-s` (harness/wire.py; it needs root, and what it carries costs time of the same
cores). The other server hands over in place, as ever. A first token has to come back over the wire, so it is later by
two ways at least: the grant's and its own.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import uvloop

import diptych
from harness.handover import MOST_MODEL_TOKENS, Handovers, alternate, findings_of
from harness.options import Options, setting
from harness.program import Outcome, ProgressBar, run_program
from harness.result import Finding
from harness.two_machines import TwoMachines
from harness.wire import Wire


@dataclass(frozen=True, kw_only=True)
class DistantOptions(Options):
    """Flags of this benchmark."""

    transports: tuple[str, ...] = setting(("tcp", "mooncake", "nixl"), "By which KV moves.")
    delays_ms: tuple[float, ...] = setting((1.0, 10.0), "One way.")
    gbit_per_s: float = setting(10.0, "Of the wire.")
    prompt_tokens: tuple[int, ...] = setting((128, 512, 1024), "Lengths of prompts.")


def measure(options: DistantOptions, progress: ProgressBar) -> Outcome:
    """Alternate the two servers, for each transport and delay."""
    progress.expect(len(options.transports) * len(options.delays_ms))
    findings: list[Finding] = []
    samples: dict[str, Any] = {}
    what = Handovers(options.prompt_tokens, options.pairs, options.seed)
    for transport in options.transports:
        for delay_ms in options.delays_ms:
            name = f"{transport}, {delay_ms:g} ms away"
            with progress.part(name), ExitStack() as running:
                config = options.serve_config(
                    kv_transport=transport, kv_bytes=500_000_000, max_model_len=MOST_MODEL_TOKENS
                )
                near = running.enter_context(diptych.serve(config.model_copy(update={"cores": [0, 1]})))
                wire = running.enter_context(Wire(delay_ms / 1e3, options.gbit_per_s * 1e9 / 8))
                far = running.enter_context(TwoMachines(config.model_copy(update={"cores": [1]}), 0, wire))
                samples[name] = uvloop.run(alternate(near, far.server, what))
            findings += findings_of(name, samples[name], options.seed)
    return Outcome(findings, samples)


if __name__ == "__main__":
    run_program("distant_handover", DistantOptions, __doc__, measure)
