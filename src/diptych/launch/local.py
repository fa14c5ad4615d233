"""All processes of one machine: started in order, watched, drained and ended.

segment, sockets -> workers compile -> they agree on the layout -> leases -> workers warm up -> ready
                 -> the frontend loads its tokenizer meanwhile ----------> listens ------------^
"""

import os
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from diptych.core.config import ServeConfig
from diptych.core.control import Alive, ClusterReady, FrontendListening, LayoutReport, StartFailure, ToLauncher
from diptych.core.errors import LaunchError
from diptych.core.ids import WorkerId
from diptych.core.messages import Role
from diptych.kv.header import SegmentHeader
from diptych.launch.access import Access
from diptych.launch.cores import CorePlan, share_cores, usable_cores
from diptych.launch.costs import find_costs
from diptych.launch.disk_kv import DiskPlan, plan_disk_kv
from diptych.launch.orders import Agreement, Orders
from diptych.launch.process import ChildProcess, describe_exit
from diptych.launch.run_directory import RunDirectory
from diptych.launch.segment_plan import EXTENT_BLOCKS, SegmentPlan, agree_on_layout, plan_segment
from diptych.launch.supervisor import FRONTEND_MODULE, WORKER_MODULE, Supervisor
from diptych.models import ModelFolder
from diptych.transfer.segment import Segment

STOP_TIMEOUT_S = 5.0
Answer = TypeVar("Answer", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class StartedCluster:
    """What came up."""

    url: str
    cores: CorePlan
    plan: SegmentPlan
    layout: LayoutReport
    costs_source: str
    """Where the workers' predicted step times come from, for people."""
    ready_after_s: float
    disk: DiskPlan | None = None
    """Where KV goes that memory does not hold; None: nowhere."""


class LocalCluster:
    """The processes of one server. Not restartable: after `stop` make a new one."""

    def __init__(self, config: ServeConfig, model: ModelFolder, access: Access) -> None:
        self._config = config
        self._model = model
        self._access = access
        self._roles = roles_of(config)
        self._cores = share_cores(usable_cores(config.cores), self._roles)
        self._disk = plan_disk_kv(config, self._roles)
        self._directory = RunDirectory()
        try:
            self._orders = Orders(config, model, access, self._roles, self._cores, self._directory, self._disk)
        except BaseException:
            self._directory.close()
            raise
        self._workers: dict[WorkerId, ChildProcess] = {}
        self._frontend: ChildProcess | None = None
        self._segment_descriptor = -1
        self._supervisor: Supervisor | None = None
        self.ended = threading.Event()
        """Set when there is no frontend any more: it was asked to end, or dies again and again."""

    # Start

    def start(self, on_progress: Callable[[str], None]) -> StartedCluster:
        """Start everything and return when requests can be served.

        Raises: LaunchError, ConfigError; everything that was started has been stopped.
        """
        try:
            started = self._start(time.monotonic(), on_progress)
        except BaseException:
            self.kill()
            raise
        return started

    def _start(self, begin_s: float, on_progress: Callable[[str], None]) -> StartedCluster:
        deadline_s = begin_s + self._config.start_timeout_s
        segment, self._segment_descriptor = Segment.create(self._config.kv_bytes)
        try:
            on_progress("starting the workers")
            self._frontend = ChildProcess("frontend", FRONTEND_MODULE, self._orders.log)
            lives = {worker_id: number for number, worker_id in enumerate(self._roles, start=1)}
            for worker_id, number in lives.items():
                child = ChildProcess(worker_id, WORKER_MODULE, self._orders.log, [self._segment_descriptor])
                self._workers[worker_id] = child
                child.control.send(self._orders.worker(worker_id, number, self._segment_descriptor))
            Segment.reserve(self._segment_descriptor, segment.num_bytes)
            on_progress("compiling the model")
            reports = {
                worker_id: self._expect(child, LayoutReport, deadline_s) for worker_id, child in self._workers.items()
            }
            agreement = self._agree(reports, segment.num_bytes)
            self._write_header(segment, agreement)
        finally:
            segment.close()
        for worker_id, worker in self._workers.items():
            worker.control.send(agreement.lease(worker_id, lives))
        on_progress("warming up")
        self._frontend.control.send(self._orders.frontend(1, self._config.port, agreement))
        port = self._expect(self._frontend, FrontendListening, deadline_s).port
        self._expect(self._frontend, ClusterReady, deadline_s)
        self._supervisor = self._supervise(agreement, port, self._frontend)
        host = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
        took_s = time.monotonic() - begin_s
        layout, plan, source = agreement.layout, agreement.plan, agreement.costs.source
        url = f"{self._access.scheme}://{host}:{port}"
        return StartedCluster(url, self._cores, plan, layout, source, took_s, self._disk)

    def _supervise(self, agreement: Agreement, port: int, frontend: ChildProcess) -> Supervisor:
        timeout_s = self._config.start_timeout_s
        supervisor = Supervisor(
            self._orders, agreement, self._segment_descriptor, port, timeout_s, self._workers, frontend, self.ended
        )
        supervisor.start()
        return supervisor

    def _agree(self, reports: dict[WorkerId, LayoutReport], num_bytes: int) -> Agreement:
        config, model = self._config, self._model
        layout = agree_on_layout(reports)
        plan = plan_segment(
            num_bytes,
            layout,
            self._roles,
            model.context_length,
            config.max_model_len,
            do_helpers_own=config.adaptive,
        )
        return Agreement(layout, plan, find_costs(config, model, layout.engine, self._cores.workers))

    def _write_header(self, segment: Segment, agreement: Agreement) -> None:
        """Lease each worker its blocks."""
        plan, layout = agreement.plan, agreement.layout
        header = SegmentHeader.create(
            segment.view(0, segment.num_bytes),
            plan.num_blocks,
            layout.block_bytes,
            layout.fingerprint,
            self._model.key,
            extent_blocks=EXTENT_BLOCKS,
        )
        for worker_id, extents in plan.extents.items():
            for extent in extents:
                header.lease_extent(extent, worker_id, header.extent_epoch(extent))
        header.close()

    def _expect(self, child: ChildProcess, kind: type[Answer], deadline_s: float) -> Answer:
        """Wait for a message of `kind` from `child`, or for the end of any process."""
        while True:
            message = self._next_message(child, deadline_s)
            if not isinstance(message, Alive):
                break
        if isinstance(message, StartFailure):
            raise LaunchError(f"{child.name}: {message.message}")
        if not isinstance(message, kind):
            raise LaunchError(f"{child.name} said {type(message).__name__} where {kind.__name__} was expected")
        return message

    def _next_message(self, child: ChildProcess, deadline_s: float) -> ToLauncher:
        while True:
            self._raise_if_ended()
            ready, _, _ = select.select([child.control], [], [], 0.1)
            if ready:
                break
            if time.monotonic() > deadline_s:
                raise LaunchError(
                    f"{child.name} was not ready within {self._config.start_timeout_s:.0f} s; "
                    "give it more with --start-timeout-s"
                )
        try:
            return child.control.receive(1.0)
        except LaunchError:
            child.wait(1.0)
            self._raise_if_ended()
            raise

    def _raise_if_ended(self) -> None:
        for child in self._children():
            status = child.poll()
            if status is None:
                continue
            try:
                message = child.control.receive(0.1)
            except LaunchError:
                message = None
            reason = message.message if isinstance(message, StartFailure) else describe_exit(status)
            raise LaunchError(f"{child.name} ended while starting: {reason}")

    def _children(self) -> list[ChildProcess]:
        return [*self._workers.values(), *([self._frontend] if self._frontend is not None else [])]

    # Stop

    def stop(self) -> None:
        """Finish running answers (up to `drain_timeout_s`), then end all processes and remove what they used."""
        if self._supervisor is not None:
            self._supervisor.end_frontend(self._config.drain_timeout_s + STOP_TIMEOUT_S)
        self._stop_supervisor()
        for worker in self._workers.values():
            worker.terminate()
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        for worker in self._workers.values():
            worker.wait(max(deadline_s - time.monotonic(), 0.0))
        self.kill()

    def kill(self) -> None:
        """End all processes at once and remove what they used; once more does nothing."""
        self._stop_supervisor()
        for child in self._children():
            child.close()
        self._workers.clear()
        self._frontend = None
        if self._segment_descriptor >= 0:
            os.close(self._segment_descriptor)
            self._segment_descriptor = -1
        self._directory.close()

    def _stop_supervisor(self) -> None:
        """Take the processes back as they are now."""
        if self._supervisor is not None:
            self._supervisor.stop()
            self._workers = {WorkerId(child.name): child for child in self._supervisor.workers()}
            self._frontend = self._supervisor.frontend()
            self._supervisor = None


def roles_of(config: ServeConfig) -> dict[WorkerId, Role]:
    """Name the workers that `config` asks for."""
    counts = [(Role.PREFILL, config.num_prefill), (Role.DECODE, config.num_decode), (Role.MIXED, config.mixed)]
    return {WorkerId(f"{role}-{index}"): role for role, count in counts for index in range(count)}
