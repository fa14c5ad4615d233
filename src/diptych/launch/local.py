"""All processes of one machine: started in order, watched, drained and ended.

segment, sockets -> workers compile -> they agree on the layout -> leases -> workers warm up -> ready
                 -> the frontend loads its tokenizer meanwhile ----------> listens ------------^
"""

import logging
import os
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
import zmq

from diptych.core.config import ServeConfig
from diptych.core.control import (
    ClusterReady,
    FrontendListening,
    FrontendOrder,
    LayoutReport,
    Lease,
    ModelOrder,
    StartFailure,
    WorkerOrder,
)
from diptych.core.errors import ConfigError, LaunchError, PeerUnreachableError
from diptych.core.ids import WorkerId
from diptych.core.messages import Role, WorkerExited
from diptych.kv.header import SegmentHeader
from diptych.launch.cores import CorePlan, share_cores, usable_cores
from diptych.launch.costs import Costs, find_costs
from diptych.launch.process import ChildProcess, describe_exit
from diptych.launch.run_directory import RunDirectory
from diptych.launch.segment_plan import EXTENT_BLOCKS, SegmentPlan, agree_on_layout, plan_segment
from diptych.models import ModelFolder
from diptych.transfer.segment import Segment
from diptych.wire.mailbox import Outbox
from diptych.wire.neighbours import inbox_name

WORKER_MODULE = "diptych.worker.server"
FRONTEND_MODULE = "diptych.launch.front"
STOP_TIMEOUT_S = 5.0
WATCH_POLL_S = 0.1
"""How soon the watcher sees that it shall stop; ends of processes wake it at once."""
NICENESS_BESIDE_FRONTEND = 5
Answer = TypeVar("Answer", bound=msgspec.Struct)
log = logging.getLogger(__name__)


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


class LocalCluster:
    """The processes of one server. Not restartable: after `stop` make a new one."""

    def __init__(self, config: ServeConfig, model: ModelFolder) -> None:
        self._config = config
        self._model = model
        self._roles = roles_of(config)
        self._chat_template = None if config.chat_template is None else read_template(config.chat_template)
        self._cores = share_cores(usable_cores(config.cores), self._roles)
        self._directory = RunDirectory()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._outbox = Outbox(self._context)
        self._workers: dict[WorkerId, ChildProcess] = {}
        self._incarnations = {worker_id: number for number, worker_id in enumerate(self._roles, start=1)}
        self._frontend: ChildProcess | None = None
        self._is_stopping = threading.Event()
        self._watcher: threading.Thread | None = None
        self.ended = threading.Event()
        """Set when the server cannot go on: its frontend has ended."""

    # Start

    def start(self, on_progress: Callable[[str], None]) -> StartedCluster:
        """Start everything and return when requests can be served.

        Raises: LaunchError, ConfigError; everything that was started has been stopped.
        """
        begin_s = time.monotonic()
        try:
            started = self._start(begin_s + self._config.start_timeout_s, on_progress)
        except BaseException:
            self.kill()
            raise
        self._watcher = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._watcher.start()
        url, plan, layout, source = started
        return StartedCluster(url, self._cores, plan, layout, source, time.monotonic() - begin_s)

    def _start(
        self, deadline_s: float, on_progress: Callable[[str], None]
    ) -> tuple[str, SegmentPlan, LayoutReport, str]:
        segment, descriptor = Segment.create(self._config.kv_bytes)
        try:
            on_progress("starting the workers")
            self._frontend = ChildProcess("frontend", FRONTEND_MODULE)
            for worker_id in self._roles:
                child = ChildProcess(worker_id, WORKER_MODULE, [descriptor])
                self._workers[worker_id] = child
                child.control.send(self._worker_order(worker_id, descriptor))
            Segment.reserve(descriptor, segment.num_bytes)
            on_progress("compiling the model")
            reports = {
                worker_id: self._expect(child, LayoutReport, deadline_s) for worker_id, child in self._workers.items()
            }
            layout = agree_on_layout(reports)
            costs = find_costs(self._config, self._model, layout.engine, self._cores.workers)
            plan = self._lease_blocks(segment, layout, costs)
            on_progress("warming up")
            self._frontend.control.send(self._frontend_order(layout, plan, costs))
            listening = self._expect(self._frontend, FrontendListening, deadline_s)
            self._expect(self._frontend, ClusterReady, deadline_s)
        finally:
            os.close(descriptor)
            segment.close()
        host = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
        return f"http://{host}:{listening.port}", plan, layout, costs.source

    def _lease_blocks(self, segment: Segment, layout: LayoutReport, costs: Costs) -> SegmentPlan:
        config = self._config
        plan = plan_segment(
            segment.num_bytes,
            layout,
            self._roles,
            self._model.context_length,
            config.max_model_len,
            do_helpers_own=config.adaptive,
        )
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
        for worker_id, worker in self._workers.items():
            worker.control.send(Lease(max_model_len=plan.max_model_len, costs=costs.models[worker_id]))
        return plan

    def _expect(self, child: ChildProcess, kind: type[Answer], deadline_s: float) -> Answer:
        """Wait for a message of `kind` from `child`, or for the end of any process."""
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
            message = child.control.receive(1.0)
        except LaunchError:
            child.wait(1.0)
            self._raise_if_ended()
            raise
        if isinstance(message, StartFailure):
            raise LaunchError(f"{child.name}: {message.message}")
        if not isinstance(message, kind):
            raise LaunchError(f"{child.name} said {type(message).__name__} where {kind.__name__} was expected")
        return message

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

    def _model_order(self) -> ModelOrder:
        model = self._model
        return ModelOrder(
            name=model.name, path=str(model.path), key=model.key, eos_token_ids=sorted(model.eos_token_ids)
        )

    def _worker_order(self, worker_id: WorkerId, segment_descriptor: int) -> WorkerOrder:
        config = self._config
        return WorkerOrder(
            worker_id=worker_id,
            incarnation=self._incarnations[worker_id],
            role=self._roles[worker_id],
            workers=self._roles,
            cores=self._cores.workers[worker_id],
            niceness=NICENESS_BESIDE_FRONTEND if self._is_beside_frontend(worker_id) else 0,
            engine=config.engine,
            modeled_time_scale=config.modeled_time_scale,
            kv_dtype=config.kv_dtype,
            model=self._model_order(),
            endpoint=self._directory.endpoint(inbox_name(worker_id, self._incarnations[worker_id])),
            router_endpoint=self._directory.endpoint("router"),
            segment_fd=segment_descriptor,
            max_num_seqs=config.max_num_seqs,
            chunk_tokens=config.chunk_tokens,
            decode_chunk_tokens=config.decode_chunk_tokens,
            local_prefill_max_tokens=config.local_prefill_max_tokens,
            is_adaptive=config.adaptive,
            slo_ttft_s=config.slo_ttft_s,
            slo_tpot_s=config.slo_tpot_s,
            is_exact=config.exact,
            has_kv_checksums=config.kv_checksums,
        )

    def _is_beside_frontend(self, worker_id: WorkerId) -> bool:
        return not set(self._cores.workers[worker_id]).isdisjoint(self._cores.frontend)

    def _frontend_order(self, layout: LayoutReport, plan: SegmentPlan, costs: Costs) -> FrontendOrder:
        config = self._config
        return FrontendOrder(
            model=self._model_order(),
            max_model_len=plan.max_model_len,
            endpoint=self._directory.endpoint("router"),
            host=config.host,
            port=config.port,
            root_path=config.root_path,
            cors_origins=config.cors_origins,
            chat_template=self._chat_template,
            cores=self._cores.frontend,
            layout_fingerprint=layout.fingerprint,
            block_size=layout.block_size,
            workers=self._roles,
            request_timeout_s=config.request_timeout_s,
            client_timeout_s=config.client_timeout_s,
            max_connections=config.max_connections,
            drain_timeout_s=config.drain_timeout_s,
            max_outstanding_requests=config.max_queue,
            local_prefill_max_tokens=config.local_prefill_max_tokens,
            is_adaptive=config.adaptive,
            slo_ttft_s=config.slo_ttft_s,
            slo_tpot_s=config.slo_tpot_s,
            costs=costs.models,
        )

    def _children(self) -> list[ChildProcess]:
        return [*self._workers.values(), *([self._frontend] if self._frontend is not None else [])]

    # Watch

    def _watch(self) -> None:
        """Reap what ends, and tell the router (a thread)."""
        assert self._frontend is not None
        poller = select.poll()
        by_descriptor = {child.exit_descriptor: child for child in self._children()}
        for descriptor in by_descriptor:
            poller.register(descriptor, select.POLLIN)
        while not self._is_stopping.is_set():
            for descriptor, _ in poller.poll(WATCH_POLL_S * 1000):
                poller.unregister(descriptor)
                self._on_exit(by_descriptor[descriptor])

    def _on_exit(self, child: ChildProcess) -> None:
        child.wait(STOP_TIMEOUT_S)
        status = child.poll()
        assert status is not None
        log.error("%s has ended (%s)", child.name, describe_exit(status))
        if child is self._frontend:
            self.ended.set()
            return
        worker_id = WorkerId(child.name)
        message = WorkerExited(worker_id=worker_id, incarnation=self._incarnations[worker_id], exit_status=status)
        try:
            self._outbox.send(self._directory.endpoint("router"), message)
        except PeerUnreachableError as error:
            log.warning("the router was not told that %s ended: %s", child.name, error)

    # Stop

    def stop(self) -> None:
        """Finish running answers (up to `drain_timeout_s`), then end all processes and remove what they used."""
        self._stop_watching()
        if self._frontend is not None:
            self._frontend.terminate()
            self._frontend.wait(self._config.drain_timeout_s + STOP_TIMEOUT_S)
        for worker in self._workers.values():
            worker.terminate()
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        for worker in self._workers.values():
            worker.wait(max(deadline_s - time.monotonic(), 0.0))
        self.kill()

    def kill(self) -> None:
        """End all processes at once and remove what they used; once more does nothing."""
        self._stop_watching()
        for child in self._children():
            child.close()
        self._workers.clear()
        self._frontend = None
        self._outbox.close()
        self._context.destroy(linger=0)
        self._directory.close()

    def _stop_watching(self) -> None:
        if self._watcher is not None:
            self._is_stopping.set()
            self._watcher.join()
            self._watcher = None


def read_template(path: Path) -> str:
    """Return a chat template's text.

    Raises: ConfigError if it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ConfigError(f"--chat-template: cannot read {path}: {reason}") from None
    if not text.strip():
        raise ConfigError(f"--chat-template: {path} is empty")
    return text


def roles_of(config: ServeConfig) -> dict[WorkerId, Role]:
    """Name the workers that `config` asks for."""
    counts = [(Role.PREFILL, config.num_prefill), (Role.DECODE, config.num_decode), (Role.MIXED, config.mixed)]
    return {WorkerId(f"{role}-{index}"): role for role, count in counts for index in range(count)}
