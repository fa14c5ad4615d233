"""One session of a machine that has joined: from `Welcome` until nothing is heard of it, or a letter is lost."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from diptych.core.addresses import HEAD_NODE, inbox_name, public_endpoint
from diptych.core.ids import NodeId, WorkerId
from diptych.core.messages import PeerAddress, Role
from diptych.core.node_messages import Join, Knock, Layout, TurnedAway
from diptych.core.service import NodeInfo
from diptych.core.version import __version__
from diptych.router.inspection import RouterInspector


class RemoteLives:
    """What a machine's agent vouches for: its own workers, at their own addresses."""

    def __init__(self, node: NodeId, workers: Mapping[WorkerId, Role]) -> None:
        self._node = node
        self._workers = workers

    def knows(self, worker_id: WorkerId) -> bool:
        """Tell whether the machine has such a worker."""
        return worker_id in self._workers

    def has_inbox(self, worker_id: WorkerId, incarnation: int) -> bool:
        """Tell whether the machine has such a worker: its agent has seen which lives there are."""
        del incarnation
        return worker_id in self._workers

    def try_find(self, address: PeerAddress) -> Role | None:
        """Return the role of the life of a worker that has its inbox there; None if there is none."""
        own = public_endpoint(f"/{inbox_name(address.worker_id, address.incarnation)}", self._node)
        is_own = (address.node, address.endpoint) == (self._node, own)
        return self._workers.get(address.worker_id) if is_own else None


@dataclass(slots=True, eq=False)
class NodeSession:
    """Owned by the event loop's thread. All times are on the router's clock."""

    number: int
    connection: bytes
    ip: str
    key_name: str
    join: Join
    joined_s: float
    heard_s: float
    state: Literal["joined", "leaving", "lost"] = "joined"
    is_broken: bool = False
    """Whether a letter to it was lost: somebody may be waiting for what will not come."""
    lost_s: float | None = None
    is_awaited: bool = True
    """While it is lost: whether requests may wait for it to come back."""
    round_trip_s: float = 0.0
    clock_offset_s: float = 0.0
    inspector: RouterInspector = field(init=False)

    def __post_init__(self) -> None:
        self.inspector = RouterInspector(RemoteLives(self.join.node, self.join.workers))

    @property
    def is_open(self) -> bool:
        """Whether letters may go there."""
        return self.state != "lost" and not self.is_broken

    def info(self, now_s: float) -> NodeInfo:
        """Describe it."""
        return NodeInfo(
            state=self.state,
            address=self.ip,
            key_name=self.key_name,
            version=self.join.version,
            engine=self.join.layout.engine,
            num_cores=self.join.num_cores,
            segment_bytes=self.join.segment_bytes,
            workers=sorted(self.join.workers),
            joined_for_s=now_s - self.joined_s,
            silent_s=now_s - self.heard_s,
            round_trip_s=self.round_trip_s,
            clock_offset_s=self.clock_offset_s,
        )


def find_refusal(asked: Knock | Join, known: NodeSession | None) -> TurnedAway | None:
    """Return why a machine cannot come in, whatever it serves; None: it can. `known`: of that name."""
    if asked.version != __version__:
        reason = f"it runs Diptych {asked.version}, and the router {__version__}: install the same release on both"
        return TurnedAway(reason=reason, is_final=True)
    if asked.node in {"", HEAD_NODE}:
        return TurnedAway(reason=f"{asked.node!r} is no name for a machine: set --node", is_final=True)
    if known is not None and known.is_open and known.join.boot != asked.boot:
        reason = (
            f"a machine called {asked.node} is in already, from {known.ip}: give this one another name (--node) or, if "
            "it is the same one started again, wait until the old one is given up"
        )
        return TurnedAway(reason=reason, is_final=False)
    return None


def find_mismatch(ours: Layout, join: Join) -> TurnedAway | None:
    """Return why a machine cannot serve what we do; None: it can."""
    theirs = join.layout
    reason = None
    if theirs.model_key != ours.model_key:
        reason = "its weights are not the router's: make the model's files the same on both machines"
    elif theirs.block_size != ours.block_size:
        reason = f"its KV blocks hold {theirs.block_size} tokens, the router's {ours.block_size}"
    elif theirs.fingerprint != ours.fingerprint:
        reason = (
            f"it lays out KV as {theirs.engine}, the router as {ours.engine}: "
            "set --kv-dtype on the router's machine to a precision that both support"
        )
    elif theirs.max_model_len != ours.max_model_len:
        reason = f"it serves contexts of {theirs.max_model_len} tokens, the router of {ours.max_model_len}"
    elif any(not worker_id.startswith(f"{join.node}.") for worker_id in join.workers):
        reason = f"its workers must be called {join.node}.SOMETHING"
    return None if reason is None else TurnedAway(reason=reason, is_final=True)
