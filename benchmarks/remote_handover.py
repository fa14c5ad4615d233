"""What it costs that a prompt is read on another machine than its answer is written on.

Two servers on the same two cores, asked in turn: one hands over in place (one segment, nothing moves), the other has
its prefill worker on a machine of its own (two launchers, two segments, one router; `--kv-transport` of each in turn).
What is not hidden behind computing is how much longer the hand-over takes, from the first token to the start of the
decode step that goes on from it; it is told as a share of the time in which the prompt is read. Times are the servers'
own, from GET /diptych/requests. Between machines NIXL would take TCP where there is no card; here it finds a short cut
between processes, unless UCX_TLS=tcp is set.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import uvloop

import diptych
from harness.handover import MOST_MODEL_TOKENS, Handovers, alternate, findings_of
from harness.options import Options, setting
from harness.program import Outcome, ProgressBar, run_program
from harness.result import Finding
from harness.two_machines import TwoMachines

LIBRARIES = {"mooncake": "mooncake.engine", "nixl": "nixl._api"}
"""Without which KV would go by TCP."""


@dataclass(frozen=True, kw_only=True)
class HandoverOptions(Options):
    """Flags of this benchmark."""

    transports: tuple[str, ...] = setting(("tcp", "mooncake", "nixl"), "By which KV moves.")
    prompt_tokens: tuple[int, ...] = setting((32, 128, 512, 1024, 2048, 4096), "Lengths of prompts.")


def measure(options: HandoverOptions, progress: ProgressBar) -> Outcome:
    """Alternate the two servers, for each transport."""
    progress.expect(len(options.transports))
    findings: list[Finding] = []
    samples: dict[str, Any] = {}
    what = Handovers(options.prompt_tokens, options.pairs, options.seed)
    for transport in options.transports:
        if transport in LIBRARIES and find_spec(LIBRARIES[transport]) is None:
            samples[transport] = {"why_not": "its library is not installed"}
            continue
        with progress.part(transport), ExitStack() as running:
            config = options.serve_config(kv_transport=transport, kv_bytes=500_000_000, max_model_len=MOST_MODEL_TOKENS)
            near = running.enter_context(diptych.serve(config.model_copy(update={"cores": [0, 1]})))
            far = running.enter_context(TwoMachines(config.model_copy(update={"cores": [1]}), core=0))
            samples[transport] = uvloop.run(alternate(near, far.server, what))
        findings += findings_of(transport, samples[transport], options.seed)
    return Outcome(findings, samples)


if __name__ == "__main__":
    run_program("remote_handover", HandoverOptions, __doc__, measure)
