"""What a measurement leaves behind: a folder with results that a report can be made of, and every request's sample.

    result.json        what was measured and what came out, small enough to read and to commit
    samples.jsonl.gz   one line a request: its times in milliseconds, for whoever trusts no summary

Both are written after every run, so that an interrupted measurement keeps what it has.
"""

import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from diptych.bench.sample import Sample
from diptych.bench.search import Goodput
from diptych.bench.statistics import Estimate
from diptych.bench.summary import RunSummary
from diptych.core.errors import BenchError, ConfigError
from diptych.core.slo import Slo
from diptych.core.whole_file import write_whole
from diptych.hardware.host import HostFacts, host_facts, software_versions

RESULT, SAMPLES = "result.json", "samples.jsonl.gz"
HTTP_OK = 200


class TargetFacts(msgspec.Struct, frozen=True):
    """A server that was measured."""

    name: str
    description: str
    model: str = ""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One run against one server."""

    number: int
    target: str
    seed: int
    summary: RunSummary


class Sweep(msgspec.Struct, frozen=True):
    """One search for goodput."""

    target: str
    seed: int
    goodputs: list[Goodput]


class Ratio(msgspec.Struct, frozen=True):
    """One server's goodput over another's at one SLO; the median over seeds."""

    slo: Slo
    target: str
    over: str
    estimate: Estimate


class Result(msgspec.Struct, kw_only=True):
    """A whole measurement."""

    command: str
    started_at: str
    settings: dict[str, Any]
    workload: str
    slos: list[Slo]
    targets: list[TargetFacts]
    runs: list[Run]
    sweeps: list[Sweep]
    ratios: list[Ratio]
    is_complete: bool
    host: HostFacts
    versions: dict[str, str]


def new_result(
    command: str, settings: dict[str, Any], workload: str, slos: list[Slo], targets: list[TargetFacts]
) -> Result:
    """Return a result with nothing measured yet."""
    return Result(
        command=command,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        settings=settings,
        workload=workload,
        slos=slos,
        targets=targets,
        runs=[],
        sweeps=[],
        ratios=[],
        is_complete=False,
        host=host_facts(),
        versions=software_versions(),
    )


class Recorder:
    """Grows a result and keeps its files up to date."""

    def __init__(self, folder: Path, result: Result) -> None:
        """Create the folder. Raises: ConfigError if that is impossible, or if another result is there."""
        self.folder = folder
        self.result = result
        if (folder / RESULT).exists():
            raise ConfigError(f"{folder} holds a result already; choose another --output")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / SAMPLES).write_bytes(b"")
        except OSError as error:
            raise ConfigError(f"cannot write to {folder}: {error.strerror}") from None

    def on_model(self, target: str, model: str) -> None:
        """Note the name under which a server has its model."""
        self.result.targets = [
            msgspec.structs.replace(facts, model=model) if facts.name == target else facts
            for facts in self.result.targets
        ]

    def add_run(self, target: str, seed: int, samples: list[Sample], summary: RunSummary) -> Run:
        """Keep a run.

        Raises: BenchError if it cannot be written; all runs before it are kept.
        """
        run = Run(number=len(self.result.runs), target=target, seed=seed, summary=summary)
        lines = b"".join(msgspec.json.encode(_packed(run.number, sample)) + b"\n" for sample in samples)
        with explain_write_errors(self.folder):
            _append(
                self.folder / SAMPLES, gzip.compress(lines, mtime=0)
            )  # members of a gzip file may follow each other
        self.result.runs.append(run)
        self.save()
        return run

    def save(self) -> None:
        """Write the result as it is.

        Raises: BenchError if it cannot be written; the one before it is kept.
        """
        with explain_write_errors(self.folder):
            write_whole(self.folder / RESULT, msgspec.json.format(msgspec.json.encode(self.result), indent=1))


@contextmanager
def explain_write_errors(folder: Path) -> Iterator[None]:
    """Turn the system's refusals to write below `folder` into one line.

    Raises: BenchError.
    """
    try:
        yield
    except OSError as error:
        raise BenchError(
            f"cannot write to {folder}: {error.strerror}; make room there, or choose another --output: "
            "what was measured before is kept"
        ) from None


def _append(path: Path, content: bytes) -> None:
    """Append all of `content` to a file, or on an OSError nothing of it."""
    with path.open("ab", buffering=0) as file:
        num_bytes = file.seek(0, os.SEEK_END)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(num_bytes)
            raise


def _packed(run: int, sample: Sample) -> dict[str, Any]:
    """Return a sample as its line has it: times in milliseconds to a tenth, gaps instead of times."""
    packed: dict[str, Any] = {
        "run": run,
        "session": sample.session,
        "turn": sample.turn,
        "planned_ms": _ms(sample.planned_s),
        "sent_ms": _ms(sample.sent_s),
        "ended_ms": _ms(sample.ended_s),
        "tokens": [sample.num_prompt_tokens, sample.num_cached_tokens, sample.num_output_tokens],
    }
    if sample.token_times_s:
        packed["ttft_ms"] = _ms(sample.ttft_s)
        packed["gaps_ms"] = [_ms(gap) for gap in sample.gaps_s]
    if sample.error:
        packed |= {"status": sample.status, "error": sample.error}
    return packed


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 1)


def load(folder: Path) -> Result:
    """Read a result.

    Raises: BenchError if there is none.
    """
    try:
        return msgspec.json.decode((folder / RESULT).read_bytes(), type=Result)
    except (OSError, msgspec.DecodeError) as error:
        raise BenchError(f"{folder} holds no result of `diptych bench`: {error}") from None


def load_samples(folder: Path, run: int) -> list[Sample]:
    """Return the samples of a run, with times rounded as they were kept.

    Raises: BenchError if they cannot be read.
    """
    try:
        with gzip.open(folder / SAMPLES) as file:
            lines = [msgspec.json.decode(line) for line in file]
    except (OSError, EOFError, msgspec.DecodeError) as error:
        raise BenchError(f"the samples in {folder} cannot be read: {error}") from None
    return [_unpacked(line) for line in lines if line["run"] == run]


def _unpacked(line: dict[str, Any]) -> Sample:
    times_s: list[float] = []
    if "ttft_ms" in line:
        times_s = [(line["planned_ms"] + line["ttft_ms"]) / 1e3]
        for gap in line["gaps_ms"]:
            times_s.append(times_s[-1] + gap / 1e3)
    num_prompt, num_cached, num_output = line["tokens"]
    return Sample(
        planned_s=line["planned_ms"] / 1e3,
        sent_s=line["sent_ms"] / 1e3,
        session=line["session"],
        turn=line["turn"],
        num_wanted_tokens=num_output,
        token_times_s=times_s,
        ended_s=line["ended_ms"] / 1e3,
        num_prompt_tokens=num_prompt,
        num_cached_tokens=num_cached,
        num_output_tokens=num_output,
        status=line.get("status", HTTP_OK),
        error=line.get("error", ""),
    )
