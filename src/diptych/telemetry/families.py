"""Writes numbers as Prometheus' metric families, all under the prefix `diptych:` and with the model's name.

The names are vLLM's wherever the meaning is the same, so that a dashboard made for it needs only another prefix.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from diptych.core.tally import Tally

PREFIX = "diptych:"
Labels = tuple[str, ...]
Values = Mapping[Labels, float] | float
NO_LABELS: Labels = ()


class Families:
    """Makes families of one server."""

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name

    def gauge(self, name: str, text: str, values: Values, label_names: Sequence[str] = ()) -> GaugeMetricFamily:
        """Return what may rise and fall."""
        family = GaugeMetricFamily(PREFIX + name, text, labels=["model_name", *label_names])
        for labels, value in _by_labels(values).items():
            family.add_metric([self._model_name, *labels], value)
        return family

    def counter(self, name: str, text: str, values: Values, label_names: Sequence[str] = ()) -> CounterMetricFamily:
        """Return what only rises; its samples are called `name_total`."""
        family = CounterMetricFamily(PREFIX + name, text, labels=["model_name", *label_names])
        for labels, value in _by_labels(values).items():
            family.add_metric([self._model_name, *labels], value)
        return family

    def histogram(
        self,
        name: str,
        text: str,
        bounds: Sequence[float],
        values: Tally | Mapping[Labels, Tally],
        label_names: Sequence[str] = (),
    ) -> HistogramMetricFamily:
        """Return how values are distributed over `bounds`."""
        family = HistogramMetricFamily(PREFIX + name, text, labels=["model_name", *label_names])
        limits = [*(str(float(bound)) for bound in bounds), "+Inf"]
        for labels, tally in ({NO_LABELS: values} if isinstance(values, Tally) else values).items():
            buckets = list(zip(limits, map(float, accumulate(tally.counts)), strict=True))
            family.add_metric([self._model_name, *labels], buckets, tally.total)
        return family


def _by_labels(values: Values) -> Mapping[Labels, float]:
    return values if isinstance(values, Mapping) else {NO_LABELS: values}
