"""All processes of one machine: started in order, watched, drained and ended.

segment, sockets -> workers compile -> they agree on the layout -> leases -> workers warm up -> ready
                 -> the frontends load their tokenizers meanwhile -------> listen ------------^
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from diptych.core.bounds import MAX_PORT
from diptych.core.config import ServeConfig
from diptych.core.control import ClusterReady, FrontendListening, LayoutReport, StoreOrder
from diptych.core.errors import ConfigError
from diptych.core.ids import RouterId, WorkerId
from diptych.core.messages import Role
from diptych.launch.access import Access
from diptych.launch.cores import CorePlan, share_cores, usable_cores
from diptych.launch.costs import Costs
from diptych.launch.crew import STOP_TIMEOUT_S, Crew, probe_layout
from diptych.launch.disk_kv import DiskPlan, plan_disk_kv
from diptych.launch.kv_store import plan_kv_store
from diptych.launch.orders import Agreement, Orders
from diptych.launch.process import ChildProcess
from diptych.launch.run_directory import RunDirectory
from diptych.launch.segment_plan import SegmentPlan
from diptych.launch.starting import StartWatch
from diptych.launch.supervisor import FRONTEND_MODULE, Supervisor
from diptych.launch.transfer_plan import head_transfer
from diptych.models import ModelFolder
from diptych.wire.border import HostPort
from diptych.wire.cluster_keys import read_allowed, read_head_keys


@dataclass(frozen=True, slots=True)
class StartedCluster:
    """What came up."""

    urls: list[str]
    """Of each frontend."""
    cores: CorePlan
    plan: SegmentPlan
    layout: LayoutReport
    costs_source: str
    """Where the workers' predicted step times come from, for people."""
    ready_after_s: float
    disk: DiskPlan | None = None
    """Where KV goes that memory does not hold; None: nowhere."""
    store: StoreOrder | None = None
    """By way of which store KV is shared with other machines; None: none."""


class LocalCluster:
    """The processes of one server. Not restartable: after `stop` make a new one."""

    def __init__(self, config: ServeConfig, model: ModelFolder, access: Access) -> None:
        """Raises: ConfigError."""
        _check_cluster(config)
        self._config = config
        self._model = model
        self._access = access
        self._roles = roles_of(config)
        self._cores = share_cores(usable_cores(config.cores), self._roles)
        self._disk = plan_disk_kv(config, self._roles)
        self._store = plan_kv_store(config)
        self._directory = RunDirectory()
        try:
            transfer = head_transfer(config)
            self._orders = Orders(
                config,
                model,
                access,
                self._roles,
                self._cores,
                self._directory,
                self._disk,
                self._store,
                transfer=transfer,
            )
        except BaseException:
            self._directory.close()
            raise
        self._crew = Crew(config, model, self._roles, self._cores, is_one_of_many=transfer is not None)
        self._frontends: list[ChildProcess] = []
        self._supervisor: Supervisor | None = None
        self.ended = threading.Event()
        """Set when there is no frontend any more: all were asked to end, or the last one dies again and again."""

    # Start

    def start(self, on_progress: Callable[[str], None]) -> StartedCluster:
        """Start everything and return when requests can be served; where others bring the workers, when they can join.

        Raises: LaunchError, ConfigError; everything that was started has been stopped.
        """
        try:
            started = self._start(time.monotonic(), on_progress)
        except BaseException:
            self.kill()
            raise
        return started

    def _start(self, begin_s: float, on_progress: Callable[[str], None]) -> StartedCluster:
        watch = StartWatch(self._children, self._config.start_timeout_s)
        on_progress("starting the workers")
        for name in _frontend_names(self._config.frontends):
            self._frontends.append(ChildProcess(name, FRONTEND_MODULE, self._orders.log))
        if self._roles:
            self._crew.begin(self._orders)
            on_progress("compiling the model")
            agreement = self._crew.agree(watch)
            self._crew.lease(agreement)
            on_progress("warming up")
        else:
            on_progress("looking how the model lays out KV")
            agreement = self._agree_alone()
        ports = self._open_frontends(watch, agreement)
        self._supervisor = Supervisor(
            self._orders,
            agreement,
            self._crew.segment_descriptor,
            ports,
            self._config.start_timeout_s,
            self._crew.workers,
            self._frontends,
            self.ended,
        )
        self._supervisor.start()
        host = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
        took_s = time.monotonic() - begin_s
        layout, plan, source = agreement.layout, agreement.plan, agreement.costs.source
        urls = [f"{self._access.scheme}://{host}:{port}" for port in ports]
        return StartedCluster(urls, self._cores, plan, layout, source, took_s, self._disk, self._store)

    def _open_frontends(self, watch: StartWatch, agreement: Agreement) -> list[int]:
        """Have all frontends listen; return their ports when all of them can serve. Raises: LaunchError."""
        ports: list[int] = []
        for number, child in enumerate(self._frontends):
            port = self._config.port + number if self._config.port else 0
            child.control.send(self._orders.frontend(RouterId(number), self._orders.first_frontend, port, agreement))
        for child in self._frontends:
            ports.append(watch.expect(child, FrontendListening).port)
        for child in self._frontends:
            watch.expect(child, ClusterReady)
        return ports

    def _agree_alone(self) -> Agreement:
        """Return what machines that join must agree with, where no worker of this one says it."""
        layout = probe_layout(self._orders, self._config.start_timeout_s)
        max_model_len = self._config.max_model_len or self._model.context_length
        if max_model_len is None:
            raise ConfigError("this model's files do not say how long a context it was made for; set --max-model-len")
        return Agreement(layout, SegmentPlan(0, {}, max_model_len), Costs({}, "the machines that join"))

    def _children(self) -> Sequence[ChildProcess]:
        return [*self._crew.workers.values(), *self._frontends]

    # Stop

    def stop(self) -> None:
        """Finish running answers (up to `drain_timeout_s`), then end all processes and remove what they used."""
        if self._supervisor is not None:
            self._supervisor.end_frontends(self._config.drain_timeout_s + STOP_TIMEOUT_S)
        self._stop_supervisor()
        self._crew.stop()
        self.kill()

    def kill(self) -> None:
        """End all processes at once and remove what they used; once more does nothing."""
        self._stop_supervisor()
        self._crew.kill()
        for frontend in self._frontends:
            frontend.close()
        self._frontends = []
        self._directory.close()

    def _stop_supervisor(self) -> None:
        """Take the processes back as they are now."""
        if self._supervisor is not None:
            self._supervisor.stop()
            self._crew.take_back(self._supervisor.workers())
            self._frontends = self._supervisor.frontends()
            self._supervisor = None


def _frontend_names(count: int) -> list[str]:
    return ["frontend"] if count == 1 else [f"frontend-{number}" for number in range(count)]


def roles_of(config: ServeConfig) -> dict[WorkerId, Role]:
    """Name the workers that `config` asks for."""
    counts = [(Role.PREFILL, config.num_prefill), (Role.DECODE, config.num_decode), (Role.MIXED, config.mixed)]
    return {WorkerId(f"{role}-{index}"): role for role, count in counts for index in range(count)}


def _check_cluster(config: ServeConfig) -> None:
    """Raises: ConfigError if other machines are to join and cannot."""
    if config.cluster_listen is not None and config.cluster_keys is not None:
        listen = HostPort.parse(config.cluster_listen, "--cluster-listen")
        if listen.port + config.frontends - 1 > MAX_PORT:
            raise ConfigError(f"--cluster-listen: {config.frontends} frontends from {listen} on go above {MAX_PORT}")
        _, allowed = read_head_keys(config.cluster_keys)
        if not read_allowed(allowed):
            how = f"`diptych keys {config.cluster_keys} NAME` lets one"
            raise ConfigError(f"--cluster-keys: no machine may join; {how}")
