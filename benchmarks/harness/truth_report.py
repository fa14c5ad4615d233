"""The simulator against the live system, rate by rate: pooled over seeds, as a table, as a picture."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Comparison:
    """A set-up at a rate, real and simulated: one run, or all of one rate together."""

    cell: str
    """Workload and set-up."""
    rate_per_s: float
    slo: str
    num_requests: int
    real: float
    """Attainment, from 0 to 1."""
    simulated: float
    """The same, by the profile."""
    real_ttft_s: float
    simulated_ttft_s: float
    real_tpot_s: float
    simulated_tpot_s: float
    as_slow: float = float("nan")
    """Attainment, simulated with steps as slow as they were."""
    slowness: float = 1.0
    """How many times as long steps took as the simulator has them, by the profile."""

    @property
    def points(self) -> float:
        """By how many percentage points the simulator is above the real system."""
        return 100 * (self.simulated - self.real)

    @property
    def points_as_slow(self) -> float:
        """The same, with steps as slow as they were."""
        return 100 * (self.as_slow - self.real)


MEANS = (
    *("real", "simulated", "real_ttft_s", "simulated_ttft_s", "real_tpot_s", "simulated_tpot_s"),
    *("as_slow", "slowness"),
)
"""What is averaged over the runs of a rate, each request counting alike."""


def pooled(runs: Sequence[Comparison]) -> list[Comparison]:
    """Return one comparison a cell, rate and SLO, of all seeds together."""
    groups: dict[tuple[str, float, str], list[Comparison]] = defaultdict(list)
    for run in runs:
        groups[run.cell, run.rate_per_s, run.slo].append(run)
    found = []
    for own in groups.values():
        weights = [one.num_requests for one in own]
        means: dict[str, Any] = {
            name: float(np.average([getattr(one, name) for one in own], weights=weights)) for name in MEANS
        }
        found.append(replace(own[0], num_requests=sum(weights), **means))
    return found


def draw(comparisons: Sequence[Comparison], path: Path) -> None:
    """Draw attainment by rate, real and simulated, a panel a cell."""
    import matplotlib as mpl  # noqa: PLC0415  an extra

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    cells = list(dict.fromkeys(one.cell for one in comparisons))
    figure, panels = pyplot.subplots(1, len(cells), figsize=(4 * len(cells), 3.6), layout="constrained", sharey=True)
    for panel, cell in zip(np.atleast_1d(panels), cells, strict=True):
        of_cell = sorted((one for one in comparisons if one.cell == cell), key=lambda one: one.rate_per_s)
        for number, slo in enumerate(dict.fromkeys(one.slo for one in of_cell)):
            own = [one for one in of_cell if one.slo == slo]
            rates, color = [one.rate_per_s for one in own], f"C{number}"
            for name, style, label in (
                ("real", {"marker": "o"}, f"{slo}, real"),
                ("simulated", {"marker": "x", "linestyle": "--"}, "simulated by the profile"),
                ("as_slow", {"marker": "+", "linestyle": ":"}, "with steps as slow as they were"),
            ):
                panel.plot(rates, [100 * getattr(one, name) for one in own], color=color, label=label, **style)
        panel.set(title=cell, xlabel="requests/s")
        panel.legend(fontsize=7)
    np.atleast_1d(panels)[0].set_ylabel("% of requests within the limits")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def write_table(comparisons: Sequence[Comparison], overheads: Mapping[str, float], path: Path) -> None:
    """Write all rates as Markdown."""
    lines = [
        "# Simulator against the live system",
        "",
        "Written by `benchmarks/simulator_truth.py`; [docs/simulator.md](../../../docs/simulator.md) explains it.",
        "",
        f"Besides the profile: {overheads['accept_s'] * 1e3:g} ms from arrival to router, "
        f"{overheads['step_s'] * 1e3:g} ms a step, steps {overheads['decode_factor']:g} (decode) and "
        f"{overheads['prefill_factor']:g} (prefill) times as long beside the other phase.",
        "",
        "Attainment: real, simulated by the profile, simulated with steps as slow as they were in those runs (how many",
        "times as long as by the profile). Times are means, real / simulated by the profile.",
        "",
        "| cell | requests/s | requests | limits | real | by the profile | points | as slow | points | TTFT | TPOT |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in sorted(comparisons, key=lambda one: (one.cell, one.slo, one.rate_per_s)):
        shares = f"{one.real:.0%} | {one.simulated:.0%} | {one.points:+.0f}"
        as_slow = f"{one.as_slow:.0%} ({one.slowness:.2f}) | {one.points_as_slow:+.0f}"
        ttft = f"{one.real_ttft_s:.2f} / {one.simulated_ttft_s:.2f} s"
        tpot = f"{one.real_tpot_s * 1e3:.1f} / {one.simulated_tpot_s * 1e3:.1f} ms"
        where = f"{one.cell} | {one.rate_per_s:.2f} | {one.num_requests} | {one.slo}"
        lines.append(f"| {where} | {shares} | {as_slow} | {ttft} | {tpot} |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
