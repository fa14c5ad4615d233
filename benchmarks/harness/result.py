"""What a benchmark leaves behind: findings against targets, raw samples, and all that is needed to run it again."""

from pathlib import Path
from typing import Any, Literal

import msgspec

from diptych.bench.statistics import Estimate
from diptych.core.errors import BenchError
from diptych.hardware.host import HostFacts

RESULTS_DIR = Path(__file__).parent.parent / "results" / "latest"
DIGITS = 6
"""Of samples in seconds: a microsecond, below what scheduling lets any of them mean."""

Verdict = Literal["met", "missed", "unclear", "reported"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One measured figure and, if there is one, its target."""

    what: str
    measured: Estimate
    unit: str
    """Such as `ms`, `GB`, or empty for a ratio."""
    at_most: float | None = None
    at_least: float | None = None

    @property
    def verdict(self) -> Verdict:
        """`met` or `missed` only if the whole interval is on that side of the target; `reported` without one."""
        if self.at_most is None and self.at_least is None:
            return "reported"
        low, high = self.measured.low, self.measured.high
        if _is_within(low, self) and _is_within(high, self):
            return "met"
        return "unclear" if _is_within(low, self) or _is_within(high, self) else "missed"

    @property
    def target_text(self) -> str:
        """The target in words; a dash where there is none."""
        limits = [("at most", self.at_most), ("at least", self.at_least)]
        return (
            " and ".join(f"{word} {limit:g} {self.unit}".rstrip() for word, limit in limits if limit is not None) or "-"
        )

    @property
    def measured_text(self) -> str:
        """Median and interval in the finding's unit."""
        estimate = self.measured
        text = f"{_three_digits(estimate.median)} {self.unit}".rstrip()
        if estimate.num_samples == 1:
            return text
        return f"{text} ({_three_digits(estimate.low)} to {_three_digits(estimate.high)})"


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _is_within(value: float, finding: Finding) -> bool:
    is_low_enough = finding.at_most is None or value <= finding.at_most
    return is_low_enough and (finding.at_least is None or value >= finding.at_least)


def single(value: float) -> Estimate:
    """Return a figure that was counted rather than sampled."""
    return Estimate(value, value, value, 1)


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A benchmark's whole outcome, as `results/NAME.json` holds it."""

    benchmark: str
    started_at: str
    """ISO 8601, UTC."""
    duration_s: float
    seed: int
    settings: dict[str, Any]
    host: HostFacts
    versions: dict[str, str]
    findings: list[Finding]
    samples: dict[str, Any]
    """Raw, in seconds unless a name says otherwise."""


def save_result(result: Result, directory: Path) -> Path:
    """Write `directory`/NAME.json and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{result.benchmark}.json"
    document: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(result, samples=_rounded(result.samples)))
    # A line a field: samples may be tens of thousands of numbers, and the rest shall be readable in a diff.
    lines = [f'"{name}": {msgspec.json.encode(value).decode()}' for name, value in document.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return path


def load_result(path: Path) -> Result:
    """Read what `save_result` wrote.

    Raises: BenchError if the file is none of ours.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Result)
    except (OSError, msgspec.DecodeError) as error:
        raise BenchError(f"{path} is no benchmark result ({error}); run the benchmark again") from None


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
