"""What caching does for chats: the time to the first token of each turn, with the history found and without.

Each chat goes on with the answers that it gets. Every turn is asked twice, in alternating order: as it is, and under a
salt that nobody has used before, so that nothing is found. Two decode workers read their prompts themselves; the router
sends a chat to where its past is.

Then the same chats after a restart of the whole server: with the folder of KV that the first one has left on disk, and
with an empty one, in turn. Nothing is in memory then, and each pair asks another question, so nothing but the history
can be found.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

import diptych
from diptych.bench.statistics import estimate_median
from diptych.core.errors import BenchError
from diptych.core.events import Lifecycle, RequestRecord
from harness.client import LoadClient, Message, Trace
from harness.options import Options, setting
from harness.program import Outcome, ProgressBar, run_program
from harness.prompts import Prompts
from harness.result import Finding, single
from harness.serving import client_cores, pinned_to

FROM_TURN = 3
MIN_RATIO_IN_MEMORY = 3.0
MIN_RATIO_ON_DISK = 2.0
KV_BYTES = 2 * 10**9
DISK_BYTES = 4 * 10**9


@dataclass(frozen=True, kw_only=True)
class MultiTurnOptions(Options):
    """Flags of this benchmark."""

    num_chats: int = setting(6, "Chats.")
    num_turns: int = setting(6, "Turns of each.")
    first_words: int = setting(300, "Words of a chat's first message.")
    words: int = setting(40, "Words of each further message.")
    answer_tokens: int = setting(100, "Tokens of each answer.")
    disk_dir: Path = setting(Path("/var/tmp"), "Folder on the disk to measure; what is written there is removed.")  # noqa: RUF009, S108  a field; a private folder is made in it


@dataclass(frozen=True, slots=True)
class Turn:
    """The same question, found and not."""

    number: int
    """From 1."""
    found_s: float
    absent_s: float
    """Seconds to the first token."""
    num_prompt_tokens: int
    num_cached_tokens: int

    @property
    def ratio(self) -> float:
        """How many times sooner the first token comes if the history is found."""
        return self.absent_s / self.found_s


@dataclass
class Samples:
    """All that is measured."""

    in_memory: list[Turn] = field(default_factory=list)
    on_disk: list[Turn] = field(default_factory=list)
    """`num_cached_tokens`: loaded ones."""
    load_s: list[float] = field(default_factory=list)
    """Of the warm ones: from the reservation of blocks until the loaded ones were in place."""


def measure(options: MultiTurnOptions, progress: ProgressBar) -> Outcome:
    """Hold the chats, then go on with them after restarts."""
    progress.expect(options.num_turns + 2 * options.pairs)
    samples, prompts = Samples(), Prompts(options.seed)
    with tempfile.TemporaryDirectory(dir=options.disk_dir, prefix="diptych-bench-") as folder:
        warm = Path(folder) / "warm"
        with _serving(options, warm) as server:
            chats = uvloop.run(_hold_chats(server, options, prompts, samples, progress))
        for pair in range(options.pairs):
            questions = [prompts.text(options.words) for _ in chats]
            answers: dict[bool, list[tuple[Trace, RequestRecord]]] = {}
            for is_warm in (True, False) if pair % 2 == 0 else (False, True):
                root = warm if is_warm else Path(folder) / f"cold-{pair}"
                with (
                    progress.part(f"pair {pair + 1}, {'warm' if is_warm else 'cold'} start"),
                    _serving(options, root) as server,
                ):
                    answers[is_warm] = uvloop.run(_ask_on(server, chats, questions))
            _add_pair(samples, options.num_turns + 1, answers)
    return Outcome(_findings(samples, options), _raw(samples))


@contextmanager
def _serving(options: MultiTurnOptions, root: Path) -> Iterator[diptych.Server]:
    config = options.serve_config(
        prefill=0, decode=2, kv_bytes=KV_BYTES, disk_kv_bytes=DISK_BYTES, disk_kv_dir=root, admission="none"
    )
    with diptych.serve(config) as server, pinned_to(client_cores(server.status())):
        yield server


async def _hold_chats(
    server: diptych.Server, options: MultiTurnOptions, prompts: Prompts, samples: Samples, progress: ProgressBar
) -> list[list[Message]]:
    """Return the chats, each ending with an answer."""
    chats: list[list[Message]] = [[] for _ in range(options.num_chats)]
    async with LoadClient(server.url, server.model_name) as client:
        for turn in range(1, options.num_turns + 1):
            with progress.part(f"turn {turn}"):
                for number, chat in enumerate(chats):
                    text = prompts.text(options.first_words if turn == 1 else options.words)
                    chat.append({"role": "user", "content": text})
                    traces: dict[bool, Trace] = {}
                    for is_found in (True, False) if (turn + number) % 2 else (False, True):
                        salt = {} if is_found else {"cache_salt": f"turn {turn} of chat {number}"}
                        traces[is_found] = await client.converse(chat, options.answer_tokens, **salt)
                    found, absent = await client.records_of([traces[True], traces[False]])
                    if absent.num_cached_tokens:
                        raise BenchError("a prompt was found that nobody can have asked before")
                    sizes = found.num_prompt_tokens, found.num_cached_tokens
                    samples.in_memory.append(Turn(turn, traces[True].ttft_s, traces[False].ttft_s, *sizes))
                    chat.append({"role": "assistant", "content": "".join(traces[True].pieces)})
    return chats


async def _ask_on(
    server: diptych.Server, chats: list[list[Message]], questions: list[str]
) -> list[tuple[Trace, RequestRecord]]:
    """Ask each chat's next question; return what became of it."""
    async with LoadClient(server.url, server.model_name) as client:
        traces = [
            await client.converse([*chat, {"role": "user", "content": question}], 2)
            for chat, question in zip(chats, questions, strict=True)
        ]
        records = await client.records_of(traces)
    return list(zip(traces, records, strict=True))


def _add_pair(samples: Samples, turn: int, answers: dict[bool, list[tuple[Trace, RequestRecord]]]) -> None:
    """Take the same questions to a warm and a cold server; raise BenchError if one was not as it should be."""
    for (warm, record), (cold, cold_record) in zip(answers[True], answers[False], strict=True):
        if cold_record.num_cached_tokens:
            raise BenchError("an empty folder had blocks in it")
        if Lifecycle.LOADED not in record.timeline:
            raise BenchError("a chat's history was not loaded: the disk is slow, or the server had no time to store it")
        sizes = record.num_prompt_tokens, record.num_loaded_tokens
        samples.on_disk.append(Turn(turn, warm.ttft_s, cold.ttft_s, *sizes))
        samples.load_s.append(record.timeline[Lifecycle.LOADED] - record.timeline[Lifecycle.RESERVED])


def _findings(samples: Samples, options: MultiTurnOptions) -> list[Finding]:
    later = [turn for turn in samples.in_memory if turn.number >= FROM_TURN]
    places = [
        (f"turn {FROM_TURN} and later, history in memory", later, MIN_RATIO_IN_MEMORY),
        ("first turn after a restart, history on disk", samples.on_disk, MIN_RATIO_ON_DISK),
    ]
    findings: list[Finding] = []
    for what, turns, at_least in places:
        ratios = estimate_median([turn.ratio for turn in turns], options.seed)
        findings.append(
            Finding(what=f"TTFT without over TTFT with: {what}", measured=ratios, unit="", at_least=at_least)
        )
        for name, seconds in (
            ("with", [turn.found_s for turn in turns]),
            ("without", [turn.absent_s for turn in turns]),
        ):
            measured = estimate_median([value * 1e3 for value in seconds], options.seed)
            findings.append(Finding(what=f"TTFT {name}: {what}", measured=measured, unit="ms"))
        share = sum(turn.num_cached_tokens for turn in turns) / sum(turn.num_prompt_tokens for turn in turns)
        findings.append(Finding(what=f"prompt tokens found: {what}", measured=single(100 * share), unit="%"))
    loads = estimate_median([load_s * 1e3 for load_s in samples.load_s], options.seed)
    findings.append(Finding(what="of that TTFT, loading", measured=loads, unit="ms"))
    return findings


def _raw(samples: Samples) -> dict[str, Any]:
    def rows(turns: list[Turn]) -> list[dict[str, Any]]:
        return [
            {
                "turn": turn.number,
                "found_s": turn.found_s,
                "absent_s": turn.absent_s,
                "num_prompt_tokens": turn.num_prompt_tokens,
                "num_found_tokens": turn.num_cached_tokens,
            }
            for turn in turns
        ]

    return {
        "in_memory": rows(samples.in_memory),
        "on_disk": rows(samples.on_disk),
        "load_s": samples.load_s,
    }


if __name__ == "__main__":
    run_program("multi_turn_cache", MultiTurnOptions, __doc__, measure)
