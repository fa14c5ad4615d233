"""The bare engine's step times on one core, against what that core can do, and the cost model that fits them.

Shapes: prompt chunks by tokens and past, decode batches by size and context. Every round measures the core's limits
(peak of a matrix product, memory read speed) and then each shape. The limit of a step is the roofline: its weights'
arithmetic at peak, or its weights and KV read once, whichever takes longer.
"""

import os
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from diptych.bench.statistics import estimate_median, median, percentile
from diptych.calibrate.bare_engine import BareEngine, BareFacts, Place, RowShape, StepShape
from diptych.calibrate.fit import TimedStep, fit_cost_model, relative_errors
from diptych.calibrate.shapes import KNOTS
from diptych.core.cost_model import CostModel
from diptych.models import resolve
from harness.limits import Limits, measure_limits
from harness.model_work import ModelWork, count_work
from harness.options import Options, setting
from harness.program import Outcome, ProgressBar, run_program
from harness.result import Finding

CHUNK_REPEATS, BATCH_REPEATS = 3, 6
"""Of a shape in a round; the first pays for the change of shape and is dropped, the others' median counts."""


@dataclass(frozen=True, kw_only=True)
class BareOptions(Options):
    """Flags of this benchmark."""

    chunk_tokens: tuple[int, ...] = setting((16, 64, 128, 256), "Sizes of prompt chunks.")
    chunk_past: tuple[int, ...] = setting((0, 256, 1_024, 1_792), "Tokens before a chunk.")
    batch_sizes: tuple[int, ...] = setting((1, 2, 4, 8, 16, 32), "Sizes of decode batches.")
    contexts: tuple[int, ...] = setting((64, 256, 512, 2_048), "Tokens of each sequence of a decode batch.")
    core: int = setting(-1, "Core to measure on; -1 takes the last one allowed.")

    @property
    def chosen_core(self) -> int:
        """The core to measure on."""
        return self.core if self.core >= 0 else max(os.sched_getaffinity(0))


@dataclass(slots=True)
class Shape:
    """One step that is measured, and its times."""

    name: str
    step: StepShape
    durations_s: list[float] = field(default_factory=list)
    limits_s: list[float] = field(default_factory=list)
    """By the limits measured in the same round."""

    @property
    def is_chunk(self) -> bool:
        """Whether it is a chunk of a prompt."""
        return self.step[0].num_tokens > 1

    @property
    def rows(self) -> list[tuple[int, int]]:
        """As the cost model takes them."""
        return [(row.num_tokens, row.num_past_tokens) for row in self.step]


def measure(options: BareOptions, progress: ProgressBar) -> Outcome:
    """Measure limits and all shapes in each round; then fit."""
    core = options.chosen_core
    with BareEngine(options.serve_config(), Place([core])) as engine:
        shapes = _shapes(options, engine.facts)
        work = _work(options)
        progress.expect(options.pairs * len(shapes))
        limits: list[Limits] = []
        for _ in range(options.pairs):
            limits.append(measure_limits(core))
            for shape in shapes:
                with progress.part(shape.name):
                    _measure_shape(engine, shape, work, limits[-1])
    medians_s = [median(shape.durations_s) for shape in shapes]
    steps = [TimedStep(shape.rows, seconds) for shape, seconds in zip(shapes, medians_s, strict=True)]
    model = fit_cost_model(steps, KNOTS)
    errors = relative_errors(model, steps)
    findings = _limit_findings(limits, options.seed) + [
        finding for shape in shapes for finding in _shape_findings(shape, options.seed)
    ]
    samples = _samples(shapes, limits, model, work, engine.facts)
    notes = _notes(model, errors)
    return Outcome(findings, samples, notes, lambda path: _plot(shapes, model, path))


def _shapes(options: BareOptions, facts: BareFacts) -> list[Shape]:
    chunks = [
        Shape(f"prefill of {tokens} tokens after {past}", [RowShape(tokens, past)])
        for tokens, past in product(options.chunk_tokens, options.chunk_past)
    ]
    batches = [
        Shape(f"decode of {size} at context {context}", [RowShape(1, context)] * size)
        for size, context in product(options.batch_sizes, options.contexts)
    ]
    return [shape for shape in chunks + batches if _num_blocks(shape, facts) <= facts.num_blocks]


def _num_blocks(shape: Shape, facts: BareFacts) -> int:
    return sum((row.num_past_tokens + row.num_tokens) // facts.block_size + 1 for row in shape.step)


def _work(options: BareOptions) -> ModelWork | None:
    """Count the model's work; None for the modeled engine, which does none."""
    return None if options.engine == "modeled" else count_work(resolve(options.model).path)


def _measure_shape(engine: BareEngine, shape: Shape, work: ModelWork | None, limits: Limits) -> None:
    durations = engine.time_steps([shape.step] * (CHUNK_REPEATS if shape.is_chunk else BATCH_REPEATS))
    shape.durations_s.append(median(durations[1:]))
    if work is None:
        return
    num_tokens = sum(row.num_tokens for row in shape.step)
    kv_bytes = sum(row.num_past_tokens + row.num_tokens for row in shape.step) * engine.facts.token_bytes
    shape.limits_s.append(work.limit_s(num_tokens, len(shape.step), kv_bytes, limits))


def _limit_findings(limits: list[Limits], seed: int) -> list[Finding]:
    peak = estimate_median([limit.flops_per_s / 1e9 for limit in limits], seed)
    read = estimate_median([limit.read_bytes_per_s / 1e9 for limit in limits], seed)
    return [
        Finding(what="peak of one core, float32", measured=peak, unit="GFLOP/s"),
        Finding(what="memory read speed of one core", measured=read, unit="GB/s"),
    ]


def _shape_findings(shape: Shape, seed: int) -> list[Finding]:
    durations = estimate_median([seconds * 1e3 for seconds in shape.durations_s], seed)
    findings = [Finding(what=shape.name, measured=durations, unit="ms")]
    if shape.limits_s:
        ratios = [seconds / limit for seconds, limit in zip(shape.durations_s, shape.limits_s, strict=True)]
        findings.append(Finding(what="  times its limit", measured=estimate_median(ratios, seed), unit=""))
    return findings


def _notes(model: CostModel, errors: list[float]) -> list[str]:
    sizes = [abs(error) for error in errors]
    return [
        "cost model, fitted to the medians by least squares of relative errors:",
        f"{model.pass_s(1) * 1e3:.3g} ms a step, {model.row_s * 1e6:.3g} us a row, {model.past_token_s * 1e6:.3g} us a "
        f"token of context, {model.pair_s * 1e6:.3g} us a pair (`diptych calibrate` measures it with care)",
        f"relative error of the fit: median {median(sizes):.1%}, 90th percentile {percentile(sizes, 90):.1%}, "
        f"largest {max(sizes):.1%}",
    ]


def _samples(
    shapes: list[Shape], limits: list[Limits], model: CostModel, work: ModelWork | None, facts: BareFacts
) -> dict[str, Any]:
    return {
        "engine": facts.name,
        "shapes": [
            {"name": shape.name, "rows": shape.rows, "durations_s": shape.durations_s, "limits_s": shape.limits_s}
            for shape in shapes
        ],
        "flops_per_s": [limit.flops_per_s for limit in limits],
        "read_bytes_per_s": [limit.read_bytes_per_s for limit in limits],
        "work": None if work is None else work._asdict(),
        # As text: their digits must not be cut like those of durations.
        "cost_model": {
            "knots": " ".join(f"{tokens}:{seconds:.6g}" for tokens, seconds in model.knots),
            "row_s": f"{model.row_s:.6g}",
            "past_token_s": f"{model.past_token_s:.6g}",
            "pair_s": f"{model.pair_s:.6g}",
        },
    }


def _plot(shapes: list[Shape], model: CostModel, path: Path) -> None:
    """Draw modeled against measured times of all shapes."""
    from matplotlib.figure import Figure  # noqa: PLC0415  an extra

    figure = Figure(figsize=(6, 6), layout="constrained")
    panel: Any = figure.subplots()
    for kind, color in (("prefill", "tab:red"), ("decode", "tab:blue")):
        of_kind = [shape for shape in shapes if shape.is_chunk == (kind == "prefill")]
        measured = [median(shape.durations_s) * 1e3 for shape in of_kind]
        panel.scatter(measured, [model.step_s(shape.rows) * 1e3 for shape in of_kind], s=12, color=color, label=kind)
    ends = [min(median(shape.durations_s) for shape in shapes) * 1e3, max(median(s.durations_s) for s in shapes) * 1e3]
    panel.plot(ends, ends, color="gray", linewidth=1)
    panel.set(xscale="log", yscale="log", xlabel="measured step, ms", ylabel="cost model, ms")
    panel.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    run_program("bare_engine", BareOptions, __doc__, measure)
