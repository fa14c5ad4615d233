"""Constants of `diptych.hardware.cost_model.CostModel` from measured steps."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from diptych.hardware.cost_model import CostModel

Floats = npt.NDArray[np.float64]
StepRows = Sequence[tuple[int, int]]
"""(new tokens, tokens before them) of each row, as `CostModel.step_s` takes them."""


def fit_cost_model(steps: Sequence[StepRows], durations_s: Sequence[float]) -> CostModel:
    """Return the model whose relative errors over all steps have the least sum of squares, no constant being negative.

    Relative, or the longest chunks alone would decide, and short decode steps be modeled badly.
    """
    # The model is linear in its constants, so its own formula with one of them set to 1 gives that one's column.
    units = (CostModel(1, 0, 0), CostModel(0, 1, 0), CostModel(0, 0, 1))
    columns = np.array([[unit.step_s(rows) for unit in units] for rows in steps], np.float64)
    durations = np.asarray(durations_s, np.float64)
    base_s, token_s, attention_s = _least_squares(columns / durations[:, None]).tolist()
    return CostModel(base_s, token_s, attention_s)


def _least_squares(rows: Floats) -> Floats:
    """Return the x >= 0 for which `rows @ x` is nearest to all ones.

    The best of all choices of which constants are zero: with three of them there are seven.
    """
    num_constants = rows.shape[1]
    scale = np.abs(rows).max(axis=0)
    best, least_error = np.zeros(num_constants), float(len(rows))
    for choice in range(1, 2**num_constants):
        used = [index for index in range(num_constants) if choice >> index & 1]
        solution, *_ = np.linalg.lstsq(rows[:, used] / scale[used], np.ones(len(rows)), rcond=None)
        error = float(np.square(rows[:, used] / scale[used] @ solution - 1).sum())
        if (solution >= 0).all() and error < least_error:
            best = np.zeros(num_constants)
            best[used] = solution / scale[used]
            least_error = error
    return best


def relative_errors(model: CostModel, steps: Sequence[StepRows], durations_s: Sequence[float]) -> list[float]:
    """Return (modeled - measured) / measured of each step."""
    return [(model.step_s(rows) - seconds) / seconds for rows, seconds in zip(steps, durations_s, strict=True)]
