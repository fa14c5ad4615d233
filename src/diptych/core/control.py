"""What the launcher and a process that it started say to each other, over the socket that also is its lifeline.

    launcher  --WorkerOrder-->    worker   compile the model
    launcher  <--LayoutReport--   worker   so large is a block
    launcher  --Lease-->          worker   the header says which blocks are yours; bind, warm up, greet the router
    launcher  --FrontendOrder-->  frontend
    launcher  <--FrontendListening, ClusterReady--  frontend

The socket stays open for as long as the launcher lives; a process that reads its end ends itself. From then on only the
process speaks: `Alive` as long as its loop turns, `Fenced` when it has let go of a dead worker's blocks, `Unheard` of
another worker that does not answer; and the frontend passes on what an operator asks for (`Retire`, `Revive`).
"""

from typing import Literal

import msgspec

from diptych.core.addresses import public_endpoint
from diptych.core.api_keys import ApiKey
from diptych.core.cost_model import CostModel
from diptych.core.ids import FIRST_ROUTER, NO_NODE, NodeId, RouterId, WorkerId
from diptych.core.messages import PeerAddress, Role
from diptych.core.node_messages import Layout

KVDtype = Literal["auto", "f32", "bf16", "f16", "u8"]
EngineKind = Literal["openvino", "modeled"]
RoutingName = Literal[
    "predicted", "random", "round-robin", "least-loaded", "prefix-local", "kv-centric", "overlap-load"
]
"""How workers are chosen for requests (policy/routing/by_name.py)."""
AdmissionName = Literal["none", "early", "predictive"]
"""Which requests are refused for the SLO (policy/admission.py)."""
TransportName = Literal["auto", "tcp", "mooncake", "nixl"]
"""How KV moves between machines (transfer/transports.py)."""
EvictionName = Literal["lru", "reuse-aware"]
"""Which cached blocks go when there is no room (policy/eviction.py)."""


class ModelOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Which weights to load."""

    name: str
    path: str
    """Folder of the OpenVINO IR."""
    key: str
    """Names the weights; part of every block hash."""
    eos_token_ids: list[int]


class DiskOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Where a worker may keep KV on disk, and how much."""

    folder: str
    limit_bytes: int
    """Of this worker."""
    num_sharers: int
    """Workers of this server that keep KV there."""


class StoreOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Which store of KV the worker shares with other machines."""

    master: str
    """HOST:PORT of the master of a Mooncake Store."""
    host: str
    """This machine's address for others; empty: the one that leads to the master."""


class TransferOrder(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker takes and sends KV between machines."""

    host: str
    """Where to listen."""
    reached_at: str
    """Under which address other machines reach this one; empty: as they reach the router."""
    router_host: str
    """How this machine reaches the router's; empty: it is that."""
    secret: str
    """Hex digits, the same for all workers of the cluster: who does not know it gets in nowhere."""
    transports: list[str]
    """By which KV may go, the best first; `tcp` is always there (transfer/transports.py)."""


class WorkerOrder(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """All that a worker needs to know before it starts."""

    worker_id: WorkerId
    incarnation: int
    role: Role
    workers: dict[WorkerId, Role]
    """All of this server, itself included: the only ones whose messages it heeds."""
    cores: list[int]
    niceness: int
    """Above 0 where the frontend runs on the same cores: it needs little, but at once."""
    engine: EngineKind
    modeled_costs: CostModel
    """The time that the modeled engine takes."""
    kv_dtype: KVDtype
    model: ModelOrder
    endpoint: str
    """Of its inbox, on this machine."""
    routers: dict[RouterId, str]
    """Where each router is, or who passes on to it, on this machine."""
    segment_fd: int
    max_num_seqs: int
    chunk_tokens: int
    """Most prompt tokens in one step."""
    decode_chunk_tokens: int
    """The same while answers are being written by the same worker."""
    local_prefill_max_tokens: int
    """A decode worker reads a prompt itself if no more than this many tokens of it are not cached."""
    is_adaptive: bool
    """Whether the sizes of chunks and batches follow from the SLO and predicted step times, not from fixed numbers; a
    prefill worker then also writes answers, in blocks of its own."""
    slo_ttft_s: float
    slo_tpot_s: float
    """What answers shall keep to: seconds to the first token, and a token after that."""
    queue_timeout_s: float | None
    """How long after its arrival a request may wait for its prompt to be begun; None: until its deadline."""
    grant_timeout_s: float
    """How long nothing may be heard of a grant before its writer is asked, and how long that may take to answer."""
    is_exact: bool
    """Whether to reuse only blocks written by prefill, so that answers do not depend on what is cached even in bf16."""
    has_kv_checksums: bool
    """Whether to compare all KV that a step reads with what was written there."""
    eviction: EvictionName = "reuse-aware"
    """Which cached blocks make room."""
    disk: DiskOrder | None = None
    """None: no KV goes to disk."""
    store: StoreOrder | None = None
    """None: it shares no KV with other machines by way of a store."""
    node: NodeId = NO_NODE
    """What this machine is called in a cluster."""
    transfer: TransferOrder | None = None
    """None: it has to do with no other machine's workers."""

    @property
    def address(self) -> PeerAddress:
        """Where this life of the worker is written to."""
        endpoint = public_endpoint(self.endpoint, self.node)
        return PeerAddress(self.worker_id, endpoint, self.incarnation, self.node)

    @property
    def writes_answers(self) -> bool:
        """Whether it owns blocks for answers. A prefill worker does not, unless it may help out."""
        return self.role is not Role.PREFILL or self.is_adaptive

    @property
    def caches(self) -> bool:
        """Whether it keeps KV of its own: for answers, or for prompts that it reads for other machines."""
        return self.writes_answers or self.transfer is not None


class LayoutReport(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What the compiled model needs of the segment."""

    block_size: int
    block_bytes: int
    fingerprint: str
    engine: str


class Lease(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The segment's header is written: the blocks of the extents that name a worker there are its own."""

    max_model_len: int
    """Most tokens of a prompt and its answer together."""
    costs: CostModel
    """How long steps take on this worker's cores, as far as is known."""
    lives: dict[WorkerId, int]
    """Of all workers that are there now, this one too: by whom, and of whose end, there may be messages. Those to come
    show themselves by their inboxes."""


class StartFailure(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Why a process cannot start, in one line for the user."""

    message: str


class ClusterOrder(msgspec.Struct, frozen=True, kw_only=True):
    """How other machines may join."""

    listen: str
    """HOST:PORT."""
    keys: str
    """Folder."""
    settings: dict[str, str | int | float | bool | None]
    """What all machines share."""
    layout: Layout
    transfer_secret: str
    """Hex digits: what all workers of the cluster know (`TransferOrder`)."""
    timeout_s: float
    """Of silence, until a machine is given up."""


class FrontendOrder(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """All that the frontend's process needs to know."""

    incarnation: int
    """Grows with every restart of this frontend."""
    router: RouterId = FIRST_ROUTER
    """Which of the server's routers is its own."""
    fellows: dict[RouterId, str] = {}
    """Where the others are."""
    model: ModelOrder
    max_model_len: int
    endpoint: str
    host: str
    port: int
    root_path: str
    cors_origins: list[str]
    api_keys: list[ApiKey]
    """Those that no file has."""
    api_key_file: str | None
    tls_cert: str | None
    tls_key: str | None
    """Files; None: plain HTTP."""
    chat_template: str | None
    """In place of the model's own."""
    cores: list[int]
    layout_fingerprint: str
    block_size: int
    workers: dict[WorkerId, Role]
    request_timeout_s: float
    queue_timeout_s: float | None
    client_timeout_s: float
    max_connections: int
    drain_timeout_s: float
    max_outstanding_requests: int
    local_prefill_max_tokens: int
    routing: RoutingName
    routing_temperature: float
    balancing_threshold: float
    slo_ttft_s: float
    slo_tpot_s: float
    admission: AdmissionName
    costs: dict[WorkerId, CostModel]
    """How long steps take on each worker."""
    has_metrics: bool = True
    slow_request_s: float | None = None
    """How long a request may take before the log tells of it."""
    node: NodeId = NO_NODE
    """What this machine is called in a cluster."""
    cluster: ClusterOrder | None = None
    """None: nobody else joins."""


class FrontendListening(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The frontend takes connections; requests are refused until the workers are ready."""

    port: int


class ClusterReady(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """All workers have said to the router that they are ready."""


class Alive(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The loop of this process turns. Sent every `ALIVE_INTERVAL_S`; who says nothing for longer is hung."""


class Fenced(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """This worker writes into no block that it was granted by that life of another worker, or by one before it."""

    worker_id: WorkerId
    incarnation: int


class Unheard(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """That life of a worker does not answer me, though it may be alive: no blocks are safe from it until it is dead."""

    worker_id: WorkerId
    incarnation: int


class Retire(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """That worker has nothing to do any more and gets no requests: end it."""

    worker_id: WorkerId
    incarnation: int
    will_return: bool
    """Whether to start a new one in its place at once."""


class Revive(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Start that worker, which has been taken out of service or has crashed too often."""

    worker_id: WorkerId


ALIVE_INTERVAL_S = 0.25

FromLauncher = WorkerOrder | Lease | FrontendOrder
ToLauncher = LayoutReport | StartFailure | FrontendListening | ClusterReady | Alive | Fenced | Unheard | Retire | Revive
