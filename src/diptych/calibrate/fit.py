"""Constants of a `CostModel` from measured steps."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from diptych.core.cost_model import CostModel, StepWork

Floats = npt.NDArray[np.float64]
StepRows = Sequence[tuple[int, int]]
"""(new tokens, tokens before them) of each row, as `CostModel.step_s` takes them."""


class TimedStep(NamedTuple):
    """A step's shape and how long it took."""

    rows: StepRows
    duration_s: float


def fit_cost_model(steps: Sequence[TimedStep], knots: Sequence[int]) -> CostModel:
    """Return the model whose relative errors have the least sum of squares, with no constant negative.

    Relative, or the longest chunks alone would decide, and short decode steps be modeled badly. The curve of a pass
    through the weights bends at `knots` (new tokens, growing, two at least, the first of them 1) and never falls.
    """
    from scipy.optimize import nnls  # noqa: PLC0415  takes half a second, which only calibrating needs

    works = [StepWork.of(step.rows) for step in steps]
    columns = np.array([_columns(work, knots) for work in works], np.float64)
    rows = columns / np.array([[step.duration_s] for step in steps], np.float64)
    scale = np.abs(rows).max(axis=0)
    scale[scale == 0] = 1.0  # nothing measured tells anything of it
    solution = (nnls(rows / scale, np.ones(len(rows)))[0] / scale).tolist()
    base_s, *slopes_s, row_s, past_token_s, pair_s = solution
    points = [(knots[0], base_s)]
    for slope_s, (before, behind) in zip(slopes_s, _spans(knots), strict=True):
        points.append((behind, points[-1][1] + slope_s * (behind - before)))
    return CostModel(tuple(points), row_s, past_token_s, pair_s)


def _spans(knots: Sequence[int]) -> list[tuple[int, int]]:
    return list(pairwise(knots))


def _columns(work: StepWork, knots: Sequence[int]) -> list[float]:
    """Return what each constant is multiplied with: 1, the tokens in each span of the curve, rows, past, pairs."""
    spans = _spans(knots)
    last = spans[-1]
    in_spans = [
        max(work.num_tokens - before if (before, behind) == last else min(work.num_tokens, behind) - before, 0)
        for before, behind in spans
    ]
    return [1.0, *in_spans, work.num_rows, work.num_past, work.num_pairs]


def relative_errors(model: CostModel, steps: Sequence[TimedStep]) -> list[float]:
    """Return (modeled - measured) / measured of each step."""
    return [model.step_s(step.rows) / step.duration_s - 1 for step in steps]
