"""What each process is told when it starts, for its first life and for every further one."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diptych.core.addresses import HEAD_NODE, border_name, inbox_name, public_endpoint, router_name
from diptych.core.config import ServeConfig
from diptych.core.control import (
    ClusterOrder,
    FrontendOrder,
    LayoutReport,
    Lease,
    ModelOrder,
    StoreOrder,
    TransferOrder,
    WorkerOrder,
)
from diptych.core.errors import ConfigError
from diptych.core.ids import NO_NODE, NodeId, RouterId, WorkerId
from diptych.core.logs import LogSettings
from diptych.core.messages import PeerAddress, Role
from diptych.core.node_config import shared_settings
from diptych.core.node_messages import Layout
from diptych.hardware.known_costs import modeled_costs
from diptych.launch.access import Access
from diptych.launch.cores import CorePlan
from diptych.launch.costs import Costs
from diptych.launch.disk_kv import DiskPlan
from diptych.launch.run_directory import RunDirectory
from diptych.launch.segment_plan import SegmentPlan
from diptych.models import ModelFolder

NICENESS_BESIDE_FRONTEND = 5


@dataclass(frozen=True, slots=True)
class Agreement:
    """What is known once the workers have compiled the model: it holds for all lives of all of them."""

    layout: LayoutReport
    plan: SegmentPlan
    costs: Costs

    def lease(self, worker_id: WorkerId, lives: Mapping[WorkerId, int]) -> Lease:
        """Return what a worker is told when its blocks are its own; `lives`: of those that have been told so."""
        return Lease(max_model_len=self.plan.max_model_len, costs=self.costs.models[worker_id], lives=dict(lives))


class Orders:
    """Writes orders from the configuration."""

    def __init__(  # noqa: PLR0913, PLR0917  all that decides what a process is told
        self,
        config: ServeConfig,
        model: ModelFolder,
        access: Access,
        roles: Mapping[WorkerId, Role],
        cores: CorePlan,
        directory: RunDirectory,
        disk: DiskPlan | None,
        store: StoreOrder | None,
        node: NodeId = NO_NODE,
        transfer: TransferOrder | None = None,
    ) -> None:
        """`node`: what the machine is called if it joins others. `transfer`: how its workers exchange KV with theirs.

        Raises: ConfigError if a file cannot be read.
        """
        is_head = config.cluster_listen is not None
        self.node = HEAD_NODE if is_head else node
        self.first_frontend = int(time.time() * 1000) if is_head else 1
        """The number of the frontend's first life. Other machines remember it, so it grows with each start here."""
        self.roles = dict(roles)
        self._config = config
        self._model = model
        self._access = access
        self._cores = cores
        self._directory = directory
        self._disk = disk
        self._store = store
        self._transfer = transfer
        self._chat_template = None if config.chat_template is None else read_template(config.chat_template)

    @property
    def log(self) -> LogSettings:
        """How every process logs."""
        return self._config.log

    @property
    def routers(self) -> dict[RouterId, str]:
        """Each router's inbox, in all its lives."""
        routers = [RouterId(number) for number in range(self._config.frontends)]
        return {router: self._directory.endpoint(router_name(router)) for router in routers}

    def border_endpoint(self, router: RouterId) -> str:
        """Return the inbox of who passes on letters to other machines by way of this router."""
        return self._directory.endpoint(border_name(router))

    @property
    def inboxes(self) -> str:
        """Where all inboxes of this machine are."""
        return self._directory.endpoint("").removesuffix("/")

    def worker_endpoint(self, worker_id: WorkerId, incarnation: int) -> str:
        """Return the inbox of a life of a worker."""
        return self._directory.endpoint(inbox_name(worker_id, incarnation))

    def worker_address(self, worker_id: WorkerId, incarnation: int) -> PeerAddress:
        """Return where a life of a worker is written to."""
        endpoint = public_endpoint(self.worker_endpoint(worker_id, incarnation), self.node)
        return PeerAddress(worker_id, endpoint, incarnation, self.node)

    def worker(self, worker_id: WorkerId, incarnation: int, segment_descriptor: int) -> WorkerOrder:
        """Return the order of a life of a worker."""
        return self._worker(worker_id, incarnation, self.roles[worker_id], segment_descriptor)

    def probe(self, name: WorkerId) -> WorkerOrder:
        """Return the order of a process that only compiles the model and says how it lays out KV."""
        return self._worker(name, 0, Role.DECODE, -1)

    def _worker(self, worker_id: WorkerId, incarnation: int, role: Role, segment_descriptor: int) -> WorkerOrder:
        config, cores = self._config, self._cores.workers.get(worker_id, self._cores.frontend)
        return WorkerOrder(
            worker_id=worker_id,
            incarnation=incarnation,
            role=role,
            workers=self.roles,
            cores=cores,
            niceness=NICENESS_BESIDE_FRONTEND if _overlap(cores, self._cores.frontend) else 0,
            engine=config.engine,
            modeled_costs=modeled_costs(config.modeled_time_scale),
            kv_dtype=config.kv_dtype,
            model=self._model_order(),
            endpoint=self.worker_endpoint(worker_id, incarnation),
            routers=self.routers,
            segment_fd=segment_descriptor,
            max_num_seqs=config.max_num_seqs,
            chunk_tokens=config.chunk_tokens,
            decode_chunk_tokens=config.decode_chunk_tokens,
            local_prefill_max_tokens=config.local_prefill_max_tokens,
            is_adaptive=config.adaptive,
            slo_ttft_s=config.slo_ttft_s,
            slo_tpot_s=config.slo_tpot_s,
            queue_timeout_s=config.queue_timeout_s,
            grant_timeout_s=config.grant_timeout_s,
            is_exact=config.exact,
            has_kv_checksums=config.kv_checksums,
            eviction=config.eviction,
            disk=None if self._disk is None else self._disk.order,
            store=self._store,
            node=self.node,
            transfer=self._transfer,
        )

    def frontend(self, router: RouterId, incarnation: int, port: int, agreement: Agreement) -> FrontendOrder:
        """Return the order of a life of a router's frontend, which listens on `port`."""
        config, access, fellows = self._config, self._access, self.routers
        endpoint = fellows.pop(router)
        return FrontendOrder(
            incarnation=incarnation,
            router=router,
            fellows=fellows,
            model=self._model_order(),
            max_model_len=agreement.plan.max_model_len,
            endpoint=endpoint,
            host=config.host,
            port=port,
            root_path=config.root_path,
            cors_origins=config.cors_origins,
            api_keys=list(access.api_keys),
            api_key_file=_text_of(access.key_file),
            tls_cert=_text_of(access.tls_cert),
            tls_key=_text_of(access.tls_key),
            chat_template=self._chat_template,
            cores=self._cores.frontend,
            layout_fingerprint=agreement.layout.fingerprint,
            block_size=agreement.layout.block_size,
            workers=self.roles,
            request_timeout_s=config.request_timeout_s,
            queue_timeout_s=config.queue_timeout_s,
            client_timeout_s=config.client_timeout_s,
            max_connections=config.max_connections,
            drain_timeout_s=config.drain_timeout_s,
            max_outstanding_requests=config.max_queue,
            local_prefill_max_tokens=config.local_prefill_max_tokens,
            routing=config.routing_name,
            routing_temperature=config.routing_temperature,
            balancing_threshold=config.balancing_threshold,
            slo_ttft_s=config.slo_ttft_s,
            slo_tpot_s=config.slo_tpot_s,
            admission=config.admission_name,
            costs=agreement.costs.models,
            has_metrics=config.metrics,
            slow_request_s=config.slow_request_s,
            node=self.node,
            cluster=self._cluster(agreement),
        )

    def layout(self, agreement: Agreement) -> Layout:
        """Return what all machines of a cluster must agree on."""
        layout = agreement.layout
        return Layout(
            model_key=self._model.key,
            fingerprint=layout.fingerprint,
            engine=layout.engine,
            block_size=layout.block_size,
            max_model_len=agreement.plan.max_model_len,
        )

    def _cluster(self, agreement: Agreement) -> ClusterOrder | None:
        config = self._config
        if config.cluster_listen is None or config.cluster_keys is None or self._transfer is None:
            return None
        return ClusterOrder(
            listen=config.cluster_listen,
            keys=str(config.cluster_keys.absolute()),
            settings=shared_settings(config),
            layout=self.layout(agreement),
            transfer_secret=self._transfer.secret,
            timeout_s=config.node_timeout_s,
        )

    def _model_order(self) -> ModelOrder:
        model = self._model
        return ModelOrder(
            name=model.name, path=str(model.path), key=model.key, eos_token_ids=sorted(model.eos_token_ids)
        )


def _overlap(one: Sequence[int], other: Sequence[int]) -> bool:
    return not set(one).isdisjoint(other)


def _text_of(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


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
