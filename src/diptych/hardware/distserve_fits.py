"""Step times of OPT on A100-80G as DistServe's authors fitted them, for its own engine and for vLLM of its time.

Coefficients are those of the repository LLMServe/DistServe (`simdistserve/estimators/profile_data/`, Apache-2.0), in
milliseconds: prefill is `a + b * tokens + c * sum of squared lengths`, decode `a + b * context tokens + c * batch`,
with one set below a batch size and one from it on. A pipeline of PP stages takes a PP-th in each.

Of vLLM and OPT-13B the sets are those of commit 3261c760: later ones take 1.5 times as long for prompts at TP 1, which
its own measurements of vLLM (`benchmarks/alignment/data-ground-truth/`: 274 ms for 2,003 tokens) do not bear out. Left
out is the set for OPT-175B at TP 8, by which every prompt takes 117 ms, however long it is. A TP without a set
gets coefficients on the straight line in 1/TP through the two nearest sets.
"""

from typing import Literal, NamedTuple

from diptych.core.cost_model import CostModel
from diptych.core.messages import Role
from diptych.hardware.roofline import hop_s
from diptych.hardware.worker_shape import WorkerShape

FITTED_DEVICE = "a100-80g"
Engine = Literal["distserve", "vllm"]
Terms = tuple[float, float, float]
MS = 1e-3


class Fit(NamedTuple):
    """Coefficients of one model at one TP; milliseconds."""

    prefill: Terms
    """A step, a token, a token squared."""
    small: Terms
    """A step, a token of context, an answer."""
    large: Terms
    """The same from `border` answers on."""
    border: int = 95

    def costs(self, role: Role) -> CostModel:
        """Return a cost model, of whole steps without pipeline.

        A prefill worker takes the first set, a decode worker the others; a mixed worker's steps go by the latter while
        they are small, and by the first from twice `border` tokens on.
        """
        a, b, c = self.prefill
        prompts = [(1, a + b), (1025, a + 1025 * b)]
        answers = [(count, self.small[0] + self.small[2] * count) for count in (1, self.border - 1)]
        if role is Role.PREFILL:
            knots = prompts
        elif role is Role.DECODE:
            knots = answers + [(count, self.large[0] + self.large[2] * count) for count in (self.border, 4096)]
        else:
            knots = answers + [(count, a + b * count) for count in (2 * self.border, 4096)]
        # Their prefill counts n * n where we count n * (n + 1) / 2 pairs; and answers are pairs, too.
        pair_s = max(2 * c, 0.0) * MS
        return CostModel(_growing(knots), 0.0, max(self.small[1] * MS - pair_s, 0.0), pair_s)


FITS: dict[Engine, dict[str, dict[int, Fit]]] = {
    "distserve": {
        "opt-13b": {
            1: Fit((16.457, 0.092648, 6.4748e-6), (19.935, 6.2694e-4, 0.038507), (7.1662, 5.7980e-4, 0.158311)),
            2: Fit((13.403, 0.062343, 2.2269e-6), (13.295, 3.4109e-4, 0.062964), (10.6387, 3.1183e-4, 0.085629)),
            4: Fit((10.966, 0.034619, 4.7511e-7), (10.256, 1.8787e-4, 0.032693), (10.4835, 1.7121e-4, 0.045666)),
        },
        "opt-66b": {
            2: Fit((39.144, 0.249299, 2.0435e-5), (48.288, 9.4243e-4, 0.127550), (28.7277, 4.7448e-4, 0.296178)),
            3: Fit((29.998, 0.177893, 1.1096e-5), (35.802, 5.8450e-4, 0.095267), (22.6539, 5.3585e-4, 0.208514)),
            4: Fit((26.765, 0.137593, 7.5613e-6), (30.760, 4.5195e-4, 0.063284), (27.4708, 4.0468e-4, 0.124807)),
        },
        "opt-175b": {
            1: Fit((130.917, 1.334225, 3.4861e-5), (227.983, 3.1798e-3, 0.182164), (229.082, 4.1038e-3, 0.113571), 10),
            2: Fit((83.837, 0.740358, 1.8612e-5), (141.508, 1.9334e-3, -2.24607), (123.068, 1.9766e-3, 0.222693), 10),
            4: Fit((53.444, 0.396701, 4.1013e-6), (73.862, 7.9088e-4, -0.46233), (72.854, 1.1247e-3, -0.077142), 10),
        },
    },
    "vllm": {
        "opt-13b": {
            1: Fit((15.752, 0.100364, 5.7690e-6), (19.563, 4.9411e-4, 0.050606), (16.8386, 4.0898e-4, 0.100003)),
            2: Fit((19.601, 0.064675, 6.0372e-6), (20.450, 1.8700e-4, 0.042632), (14.9565, 3.8090e-4, 0.093159)),
            4: Fit((21.812, 0.036790, 3.0232e-7), (21.584, 6.4614e-5, 0.046067), (19.9032, 2.3667e-4, 0.052304)),
        },
        "opt-66b": {
            2: Fit((41.702, 0.273315, -5.0815e-6), (47.561, 3.0384e-3, 0.187448), (22.4865, 5.1668e-3, 0.373547)),
            3: Fit((32.675, 0.198438, 2.6045e-5), (37.450, 6.7468e-4, 0.177400), (36.4134, 7.0021e-4, 0.200054)),
            4: Fit((30.690, 0.152047, 3.2864e-5), (32.985, 5.7881e-4, 0.113174), (34.0498, 3.5541e-4, 0.162570)),
        },
    },
}


def has_fit(shape: WorkerShape, engine: Engine = "distserve") -> bool:
    """Tell whether the authors have fitted this model on this device, at any TP."""
    return shape.device.name == FITTED_DEVICE and shape.model.name in FITS[engine]


def fitted_costs(shape: WorkerShape, role: Role, engine: Engine = "distserve") -> CostModel:
    """Return how long one stage of a worker takes for a step, by the fits; `has_fit` must hold."""
    whole = _fit(FITS[engine][shape.model.name], shape.tp).costs(role).scaled(1 / shape.pp)
    knots = tuple((num_tokens, seconds + hop_s(shape, num_tokens)) for num_tokens, seconds in whole.knots)
    return CostModel(knots, whole.row_s, whole.past_token_s, whole.pair_s)


def _fit(by_tp: dict[int, Fit], tp: int) -> Fit:
    """Return the set of a TP, or the one on the line in 1/TP through the two nearest."""
    if tp in by_tp:
        return by_tp[tp]
    first, second = sorted(sorted(by_tp, key=lambda known: abs(1 / known - 1 / tp))[:2])
    place = (1 / tp - 1 / first) / (1 / second - 1 / first)

    def between(low: Terms, high: Terms) -> Terms:
        a, b, c = (start + (end - start) * place for start, end in zip(low, high, strict=True))
        return a, b, c

    near, far = by_tp[first], by_tp[second]
    return Fit(
        between(near.prefill, far.prefill),
        between(near.small, far.small),
        between(near.large, far.large),
        near.border,
    )


def _growing(knots: list[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """Return knots in seconds that never fall: a fit of few batch sizes may have a negative slope."""
    highest, grown = 0.0, []
    for num_tokens, milliseconds in knots:
        highest = max(highest, milliseconds)
        grown.append((num_tokens, highest * MS))
    return tuple(grown)
