"""The figures of a report, drawn with matplotlib."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diptych.bench.record import Result, Run, load_samples
from diptych.bench.sample import Sample
from diptych.bench.summary import attainment, counted
from diptych.core.errors import ConfigError
from diptych.core.slo import REQUIRED_ATTAINMENT, Slo
from diptych.core.whole_file import write_whole

COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:gray")
PANEL_INCHES = (5.2, 3.6)
SCALES = np.geomspace(0.25, 4.0, 33)


def require_matplotlib() -> None:
    """Raise ConfigError if figures cannot be drawn, before anything is measured."""
    try:
        import matplotlib  # noqa: F401, PLC0415  an extra
    except ImportError:
        raise ConfigError("reports need matplotlib: pip install 'diptych[bench]', or pass --no-report") from None


def draw(result: Result, folder: Path) -> list[Path]:
    """Draw all figures into `folder`; return their paths."""
    paths = []
    if result.slos:
        paths.append(_save(_attainment_figure(result), folder / "attainment.png"))
    chosen = {run.target: load_samples(folder, run.number) for run in _typical_runs(result)}
    labels = {run.target: f"{run.target}, {run.summary.rate_per_s:.3g}/s" for run in _typical_runs(result)}
    if chosen:
        duration_s = float(result.settings["duration_s"])
        counting = {labels[name]: counted(samples, duration_s) for name, samples in chosen.items()}
        paths.append(_save(_latency_figure(result, counting), folder / "latency.png"))
    return paths


def _typical_runs(result: Result) -> list[Run]:
    """Return a run of each server, at nearly the same rate: where the weakest server that has a goodput reaches it."""
    found = [goodput.rate_per_s for sweep in result.sweeps for goodput in sweep.goodputs if goodput.rate_per_s > 0]
    runs = [run for run in result.runs if not run.summary.was_cut_short] or result.runs
    if not runs:
        return []
    rate_per_s = min(found) if found else runs[0].summary.rate_per_s
    names = dict.fromkeys(run.target for run in runs)
    return [
        min(
            (run for run in runs if run.target == name),
            key=lambda run: abs(np.log(run.summary.rate_per_s / rate_per_s)),
        )
        for name in names
    ]


def _attainment_figure(result: Result) -> Any:
    figure, panels = _panels(len(result.slos))
    seeds = sorted({run.seed for run in result.runs})
    for panel, slo in zip(panels, result.slos, strict=True):
        for facts, color in zip(result.targets, _colors(len(result.targets)), strict=True):
            for index, seed in enumerate(seeds):
                points = sorted(
                    (run.summary.rate_per_s, run.summary.attainment(slo).share)
                    for run in result.runs
                    if run.target == facts.name and run.seed == seed
                )
                if points:
                    rates, shares = zip(*points, strict=True)
                    label = facts.name if index == 0 else None
                    panel.plot(rates, shares, marker="o", markersize=3, linewidth=1, color=color, label=label)
        panel.axhline(REQUIRED_ATTAINMENT, color="gray", linewidth=1, linestyle="--")
        _set_log_x(panel)
        panel.set(xlabel="requests/s", ylabel="share that met the SLO", title=_title(slo), ylim=(0, 1.03))
        panel.legend(fontsize=7)
    return figure


def _latency_figure(result: Result, samples: dict[str, list[Sample]]) -> Any:
    figure, panels = _panels(3)
    colors = _colors(len(samples))
    _draw_scales(panels[0], result.slos, samples, colors)
    for panel, name in ((panels[1], "TTFT"), (panels[2], "gap between tokens")):
        for (label, of_label), color in zip(samples.items(), colors, strict=True):
            whole = [sample for sample in of_label if sample.is_whole]
            values = [sample.ttft_s for sample in whole] if name == "TTFT" else [g for s in whole for g in s.gaps_s]
            if values:
                ordered = np.sort(values) * 1e3
                panel.plot(ordered, 1 - np.arange(len(ordered)) / len(ordered), color=color, label=label)
        _set_log_x(panel)
        panel.set(yscale="log", xlabel=f"{name}, ms", ylabel="share that takes longer", title=name)
        panel.legend(fontsize=7)
    return figure


def _draw_scales(panel: Any, slos: Sequence[Slo], samples: dict[str, list[Sample]], colors: Sequence[str]) -> None:
    """Draw the share of requests over the SLO's scale: both limits times a factor (DistServe, figure 8, lower row)."""
    styles = ("-", "--", ":", "-.")
    for (label, of_label), color in zip(samples.items(), colors, strict=True):
        for slo, style in zip(slos, styles, strict=False):
            shares = [attainment(of_label, slo.scaled(scale)).share for scale in SCALES]
            panel.plot(SCALES, shares, style, color=color, label=f"{label}; {slo}")
    panel.axhline(REQUIRED_ATTAINMENT, color="gray", linewidth=1, linestyle="--")
    _set_log_x(panel)
    panel.set(xlabel="limits, times the SLO", ylabel="share that met them", title="SLO scale", ylim=(0, 1.03))
    if slos:
        panel.legend(fontsize=6)


def _set_log_x(panel: Any) -> None:
    """Make the x axis logarithmic, with plain numbers at a few places."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter  # noqa: PLC0415

    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())


def _panels(number: int) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(PANEL_INCHES[0] * number, PANEL_INCHES[1]), layout="constrained")
    return figure, list(figure.subplots(1, number, squeeze=False)[0])


def _colors(number: int) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(number)]


def _title(slo: Slo) -> str:
    return f"TTFT {slo.ttft_s:g} s, TPOT {slo.tpot_s * 1e3:.3g} ms"


def _save(figure: Any, path: Path) -> Path:
    image = io.BytesIO()
    figure.savefig(image, dpi=120, format="png")
    write_whole(path, image.getvalue())
    return path
