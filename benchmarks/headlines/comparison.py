"""Published and simulated, side by side; what is far apart needs a word that says why."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harness.result import Finding, single

FAR = 0.25
"""How far from the published figure, as a share of it, nothing has to be explained."""


@dataclass(frozen=True)
class Comparison:
    """One figure."""

    what: str
    published: tuple[float, float]
    """From, to; twice the same where it is one figure."""
    simulated: float
    unit: str = "x"
    remark: str = ""
    """Why it is far off, where it is."""

    @property
    def difference(self) -> float:
        """How far off the simulated figure is, as a share of the nearest published one; 0 within the range."""
        low, high = self.published
        nearest = min(max(self.simulated, low), high)
        return self.simulated / nearest - 1

    @property
    def is_far(self) -> bool:
        """Whether it needs a remark."""
        return abs(self.difference) > FAR

    @property
    def published_text(self) -> str:
        """With its unit."""
        low, high = self.published
        return f"{low:g} {self.unit}" if low == high else f"{low:g} to {high:g} {self.unit}"


def table(comparisons: Sequence[Comparison]) -> list[str]:
    """Return a Markdown table."""
    lines = ["| what | published | simulated | off by | |", "|---|---|---|---|---|"]
    for one in comparisons:
        off = "within" if one.difference == 0 else f"{one.difference:+.0%}"
        lines.append(f"| {one.what} | {one.published_text} | {one.simulated:.3g} {one.unit} | {off} | {one.remark} |")
    return lines


def findings(comparisons: Iterable[Comparison]) -> list[Finding]:
    """Return the simulated figures as a benchmark's."""
    return [
        Finding(
            what=f"{one.what} (simulated; published {one.published_text})",
            measured=single(one.simulated),
            unit=one.unit,
        )
        for one in comparisons
    ]


def samples(comparisons: Iterable[Comparison]) -> list[dict[str, Any]]:
    """Return them as JSON."""
    return [{**asdict(one), "difference": one.difference} for one in comparisons]
