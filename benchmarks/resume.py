"""How long does an answer pause when the worker that writes it dies, and does it go on with the same tokens?

An answer is streamed over HTTP. In its midst the worker that writes it (in the default set-up perhaps the prefill
worker) is killed (`kill -9`), or stopped (`SIGSTOP`: it has to be found hung first, which takes two seconds). Told is
the longest gap between two pieces of text that the client saw, and whether all tokens are those of an undisturbed
answer, bit for bit. Each pair starts a server of each set-up, so that no restart is delayed for the ones before, and
has both faults in it, in turns.
"""

import asyncio
import os
import signal
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import uvloop

import diptych
from diptych.bench.statistics import estimate_median
from diptych.core.errors import BenchError
from diptych.core.messages import WorkerState
from harness.client import LoadClient, Trace
from harness.options import Options, setting
from harness.program import Outcome, ProgressBar, run_program
from harness.prompts import Prompts
from harness.result import Finding, single
from harness.serving import client_cores, pinned_to

SETUPS = {"1P+1D": {"prefill": 1, "decode": 1}, "1P+2D": {"prefill": 1, "decode": 2}}
"""As users start them: workers may take on the other phase."""
FAULTS = {"kill -9": signal.SIGKILL, "SIGSTOP": signal.SIGSTOP}
MOST_GAP_S = {"kill -9": 1.0, "SIGSTOP": 3.0}
REPLACED_WITHIN_S = 120.0
POLL_S = 0.02


@dataclass(frozen=True, kw_only=True)
class ResumeOptions(Options):
    """Flags of this benchmark."""

    num_words: int = setting(300, "Words of the prompt.")
    num_tokens: int = setting(300, "Tokens of the answer.")
    disturb_after: int = setting(60, "Tokens after which its worker is disturbed.")
    setups: tuple[str, ...] = setting(tuple(SETUPS), f"Which of {', '.join(SETUPS)}.")


@dataclass(slots=True)
class Gaps:
    """What clients saw in one set-up."""

    undisturbed_s: list[float] = field(default_factory=list)
    """The longest gap of each undisturbed answer."""
    disturbed_s: dict[str, list[float]] = field(default_factory=lambda: {fault: [] for fault in FAULTS})
    """The longest gap of each disturbed one, by fault."""
    writers: dict[str, list[str]] = field(default_factory=lambda: {fault: [] for fault in FAULTS})
    """The worker that was disturbed, by fault."""
    num_equal: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FAULTS, 0))
    """Answers whose tokens were those of the undisturbed one."""


def measure(options: ResumeOptions, progress: ProgressBar) -> Outcome:
    """Disturb an answer in every way on every set-up, `options.pairs` times."""
    unknown = set(options.setups) - SETUPS.keys()
    if unknown or options.disturb_after >= options.num_tokens:
        raise BenchError(f"--setups are of {', '.join(SETUPS)}; --disturb-after is less than --num-tokens")
    progress.expect(options.pairs * len(options.setups))
    prompts, gaps = Prompts(options.seed), {setup: Gaps() for setup in options.setups}
    for index in range(options.pairs):
        prompt = prompts.text(options.num_words)
        faults = list(FAULTS) if index % 2 == 0 else list(reversed(FAULTS))
        for setup in options.setups:
            config = options.serve_config(adaptive=True, **SETUPS[setup])
            with progress.part(setup), diptych.serve(config) as server, pinned_to(client_cores(server.status())):
                uvloop.run(_measure_server(server, prompt, faults, options, gaps[setup]))
    return Outcome(_findings(gaps, options.seed), _samples(gaps))


async def _measure_server(
    server: diptych.Server, prompt: str, faults: list[str], options: ResumeOptions, gaps: Gaps
) -> None:
    async with LoadClient(server.url, server.model_name) as client:
        undisturbed = await _answer(client, prompt, options, "undisturbed")
        gaps.undisturbed_s.append(_longest_gap_s(undisturbed))
        for fault in faults:
            disturbed, writer = await _disturbed_answer(client, prompt, options, fault)
            gaps.writers[fault].append(writer)
            gaps.disturbed_s[fault].append(_longest_gap_s(disturbed))
            gaps.num_equal[fault] += disturbed.token_ids == undisturbed.token_ids
            await _wait_until_all_are_up(client)


async def _answer(
    client: LoadClient, prompt: str, options: ResumeOptions, salt: str, trace: Trace | None = None
) -> Trace:
    """Stream an answer to its end. Each `salt` has blocks of its own, so that all answers come by the same way."""
    return await client.complete(prompt, options.num_tokens, trace, return_token_ids=True, cache_salt=salt)


async def _disturbed_answer(client: LoadClient, prompt: str, options: ResumeOptions, fault: str) -> tuple[Trace, str]:
    """Return the answer and who began it."""
    trace = Trace(0.0)
    answering = asyncio.create_task(_answer(client, prompt, options, fault, trace))
    while len(trace.token_ids) < options.disturb_after and not answering.done():  # noqa: ASYNC110  a list that grows
        await asyncio.sleep(POLL_S / 10)
    try:
        writer, pid = await _find_writer(client)
        os.kill(pid, FAULTS[fault])
        await answering
    finally:
        answering.cancel()
    (record,) = await client.records_of([trace])
    if record.num_migrations != 1:
        raise BenchError("the answer had ended before its worker was disturbed; ask for more --num-tokens")
    return trace, writer


async def _find_writer(client: LoadClient) -> tuple[str, int]:
    """Return which worker writes the only answer there is, and its process.

    Raises: BenchError if there is none any more.
    """
    workers = (await client.status())["workers"]
    writers = [(name, int(info["status"]["pid"])) for name, info in workers.items() if info["num_assigned"]]
    if len(writers) != 1:
        raise BenchError("nobody is writing the answer any more; ask for more --num-tokens")
    return writers[0]


async def _wait_until_all_are_up(client: LoadClient) -> None:
    """Return when the dead worker's place is filled again, so that the next fault meets a whole server."""
    async with asyncio.timeout(REPLACED_WITHIN_S):
        while not await _are_all_up(client):  # noqa: ASYNC110  another process's state
            await asyncio.sleep(POLL_S)


async def _are_all_up(client: LoadClient) -> bool:
    workers = (await client.status())["workers"].values()
    return all(info["status"]["state"] == WorkerState.READY for info in workers)


def _longest_gap_s(trace: Trace) -> float:
    return max(later - earlier for earlier, later in pairwise(trace.token_times_s))


def _findings(gaps: dict[str, Gaps], seed: int) -> list[Finding]:
    findings: list[Finding] = []
    for setup, seen in gaps.items():
        for fault, gaps_s in seen.disturbed_s.items():
            name, most_s = f"{setup}, {fault}", MOST_GAP_S[fault]
            share = 100 * seen.num_equal[fault] / len(gaps_s)
            findings += [
                Finding(
                    what=f"{name}: longest gap, p50", measured=estimate_median(gaps_s, seed), unit="s", at_most=most_s
                ),
                Finding(
                    what=f"{name}: longest gap, worst of {len(gaps_s)}",
                    measured=single(max(gaps_s)),
                    unit="s",
                    at_most=most_s,
                ),
                Finding(
                    what=f"{name}: answers of the undisturbed tokens", measured=single(share), unit="%", at_least=100
                ),
            ]
        calm = estimate_median(seen.undisturbed_s, seed)
        findings.append(Finding(what=f"{setup}, undisturbed: longest gap, p50", measured=calm, unit="s"))
    return findings


def _samples(gaps: dict[str, Gaps]) -> dict[str, Any]:
    return {
        setup: {
            "undisturbed_longest_gap_s": seen.undisturbed_s,
            "disturbed_longest_gap_s": seen.disturbed_s,
            "disturbed_workers": seen.writers,
            "num_equal_answers": seen.num_equal,
        }
        for setup, seen in gaps.items()
    }


if __name__ == "__main__":
    run_program("resume", ResumeOptions, __doc__, measure)
