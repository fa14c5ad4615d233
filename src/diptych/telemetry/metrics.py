"""All metrics of one server: hears what happens from the router, and writes Prometheus' text on demand.

Cardinality: labels are places of the cluster and the words of a few enumerations; never a request, a key or a client.
"""

import asyncio
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, generate_latest

from diptych.core.clock import Clock
from diptych.core.errors import RequestError
from diptych.core.events import RequestRecord
from diptych.core.messages import Heartbeat
from diptych.core.service import ClusterStatus
from diptych.core.slo import Slo
from diptych.core.version import __version__
from diptych.telemetry.attainment import Attainment, SloResult, result_of
from diptych.telemetry.families import Families, Labels
from diptych.telemetry.rejections import OVERLOADS, rejection_of
from diptych.telemetry.request_metrics import RequestMetrics
from diptych.telemetry.worker_metrics import WorkerMetrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class _One:
    """A collector of one family, for the writer of the text format."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Sequence[Metric]:
        return [self._family]


class Metrics:
    """A `diptych.router.ports.Observer`. Owned by the event loop's thread."""

    def __init__(self, model_name: str, slo: Slo, clock: Clock) -> None:
        self.requests = RequestMetrics()
        self._workers = WorkerMetrics()
        self._slo = slo
        self._attainment = Attainment(clock)
        self._slo_results = dict.fromkeys(SloResult, 0)
        self._make = Families(model_name)
        self._process = ProcessCollector(registry=CollectorRegistry())
        self.on_tokens = self.requests.on_tokens

    def on_ended(self, record: RequestRecord) -> None:
        """Count a request that was taken and has ended, in whatever way."""
        self.requests.on_ended(record)
        result = result_of(record, self._slo)
        if result is not None and record.outcome != "failed":  # why it failed is told apart, and counted there
            self._count(result)

    def on_rejected(self, error: RequestError) -> None:
        """Count a request that gets no answer, or no more of it."""
        reason = rejection_of(error)
        self.requests.on_rejected(reason)
        if reason in OVERLOADS:
            self._count(SloResult.UNSERVED)

    def _count(self, result: SloResult) -> None:
        self._slo_results[result] += 1
        self._attainment.add(result)

    def on_heartbeat(self, heartbeat: Heartbeat) -> None:
        """Take what a worker says of itself."""
        self._workers.on_heartbeat(heartbeat)

    def collect(self, status: ClusterStatus) -> Iterator[Metric]:
        """Yield all families, as of now."""
        make = self._make
        yield make.gauge("build_info", "1, with the version.", {(__version__,): 1}, ["version"])
        yield make.gauge("ready", "1 while requests can be served.", status.health == "ready")
        yield make.gauge(
            "num_requests_running",
            "Requests whose answers are being written: they have their first token.",
            status.num_requests - status.num_unread,
        )
        yield make.gauge(
            "num_requests_waiting",
            "Requests without a first token: in a queue, or their prompts are being read.",
            status.num_unread,
        )
        yield from self.requests.collect(make)
        yield from self._slo_families(make)
        yield from self._workers.collect(make, status)
        yield from self._process.collect()

    def _slo_families(self, make: Families) -> Iterator[Metric]:
        limits: dict[Labels, float] = {("ttft",): self._slo.ttft_s, ("tpot",): self._slo.tpot_s}
        yield make.gauge("slo_limit_seconds", "What the server plans for.", limits, ["limit"])
        yield make.counter(
            "slo_requests",
            "Requests by whether they met the SLO; without those whose clients left or must change them.",
            {(result.value,): count for result, count in self._slo_results.items()},
            ["result"],
        )
        yield make.gauge(
            "slo_attainment_ratio", "Share of the last minute's requests that met the SLO.", self._attainment.share
        )
        yield make.gauge(
            "goodput_requests_per_second",
            "Requests a second that met the SLO, over the last minute.",
            self._attainment.goodput_per_s,
        )

    async def text(self, status: ClusterStatus) -> bytes:
        """Return everything in Prometheus' text format.

        Lets others run after each family: with many workers all of it at once would hold up tokens.
        """
        parts: list[bytes] = []
        for family in self.collect(status):
            parts.append(generate_latest(_One(family)))
            await asyncio.sleep(0)
        return b"".join(parts)
