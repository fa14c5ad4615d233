"""The workers of one machine and the memory that they share, from their start to their end.

segment, workers compile -> they agree on the layout -> leases -> workers warm up and greet the router
"""

import os
import time
from collections.abc import Iterable

from diptych.core.config import ServeConfig
from diptych.core.control import LayoutReport
from diptych.core.ids import WorkerId
from diptych.core.messages import Role
from diptych.kv.header import SegmentHeader
from diptych.launch.cores import CorePlan
from diptych.launch.costs import find_costs
from diptych.launch.orders import Agreement, Orders
from diptych.launch.process import ChildProcess
from diptych.launch.segment_plan import EXTENT_BLOCKS, SegmentPlan, agree_on_layout, plan_segment
from diptych.launch.starting import StartWatch
from diptych.launch.supervisor import WORKER_MODULE
from diptych.models import ModelFolder
from diptych.transfer.segment import Segment

STOP_TIMEOUT_S = 5.0
PROBE_ID = WorkerId("layout")


class Crew:
    """Not restartable: a supervisor looks after it between `lease` and `stop`."""

    def __init__(
        self,
        config: ServeConfig,
        model: ModelFolder,
        roles: dict[WorkerId, Role],
        cores: CorePlan,
        *,
        is_one_of_many: bool,
    ) -> None:
        """`is_one_of_many`: prefill workers may read for other machines, for which they need blocks."""
        self._do_read_for_others = is_one_of_many
        self._config = config
        self._model = model
        self._roles = roles
        self._cores = cores
        self.workers: dict[WorkerId, ChildProcess] = {}
        self.segment_descriptor = -1
        self._segment: Segment | None = None
        self._lives = {worker_id: number for number, worker_id in enumerate(roles, start=1)}

    def begin(self, orders: Orders) -> None:
        """Take the memory and start all processes, which compile the model. Raises: LaunchError, ConfigError."""
        self._segment, self.segment_descriptor = Segment.create(self._config.kv_bytes)
        for worker_id, number in self._lives.items():
            child = ChildProcess(worker_id, WORKER_MODULE, orders.log, [self.segment_descriptor])
            self.workers[worker_id] = child
            child.control.send(orders.worker(worker_id, number, self.segment_descriptor))
        Segment.reserve(self.segment_descriptor, self._segment.num_bytes)

    def agree(self, watch: StartWatch) -> Agreement:
        """Wait until all have compiled; divide the memory among them. Raises: LaunchError, ConfigError."""
        assert self._segment is not None
        reports = {worker_id: watch.expect(child, LayoutReport) for worker_id, child in self.workers.items()}
        layout = agree_on_layout(reports)
        plan = plan_segment(
            self._segment.num_bytes,
            layout,
            self._roles,
            self._model.context_length,
            self._config.max_model_len,
            do_helpers_own=self._config.adaptive or self._do_read_for_others,
        )
        costs = find_costs(self._config, self._model, layout.engine, self._cores.workers)
        self._write_header(self._segment, plan, layout)
        self._close_segment()
        return Agreement(layout, plan, costs)

    def _write_header(self, segment: Segment, plan: SegmentPlan, layout: LayoutReport) -> None:
        """Lease each worker its blocks."""
        header = SegmentHeader.create(
            segment.view(0, segment.num_bytes),
            plan.num_blocks,
            layout.block_bytes,
            layout.fingerprint,
            self._model.key,
            extent_blocks=EXTENT_BLOCKS,
        )
        for worker_id, extents in plan.extents.items():
            header.lease_extents(extents, worker_id)
        header.close()

    def lease(self, agreement: Agreement) -> None:
        """Tell all workers that their blocks are their own."""
        for worker_id, worker in self.workers.items():
            worker.control.send(agreement.lease(worker_id, self._lives))

    def take_back(self, workers: Iterable[ChildProcess]) -> None:
        """Take over the processes as a supervisor has left them."""
        self.workers = {WorkerId(child.name): child for child in workers}

    def stop(self) -> None:
        """End all processes in order, then as `kill`."""
        for worker in self.workers.values():
            worker.terminate()
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        for worker in self.workers.values():
            worker.wait(max(deadline_s - time.monotonic(), 0.0))
        self.kill()

    def kill(self) -> None:
        """End all processes at once and give their memory back; once more does nothing."""
        for child in self.workers.values():
            child.close()
        self.workers.clear()
        self._close_segment()
        if self.segment_descriptor >= 0:
            os.close(self.segment_descriptor)
            self.segment_descriptor = -1

    def _close_segment(self) -> None:
        if self._segment is not None:
            self._segment.close()
            self._segment = None


def probe_layout(orders: Orders, watch_timeout_s: float) -> LayoutReport:
    """Return how KV is laid out here, from a worker that compiles the model, says so and is ended.

    For a router's machine that has no workers. Raises: LaunchError.
    """
    child = ChildProcess("the layout's probe", WORKER_MODULE, orders.log)
    try:
        child.control.send(orders.probe(PROBE_ID))
        return StartWatch(lambda: [child], watch_timeout_s).expect(child, LayoutReport)
    finally:
        child.close()
