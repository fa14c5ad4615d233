"""What the router needs from outside, as protocols: how prompts are hashed, how letters travel, who starts workers."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from diptych.core.cost_model import CostModel
from diptych.core.errors import NotFoundError, RequestError
from diptych.core.events import RequestRecord
from diptych.core.ids import BlockHash, NodeId, WorkerId
from diptych.core.messages import Heartbeat, Message, PeerAddress, Role, ToRouter
from diptych.core.node_messages import ToNode
from diptych.core.service import NodeInfo
from diptych.wire.border import Arrival
from diptych.wire.dropped import DroppedMessages


class PromptHasher(Protocol):
    """Names the blocks of a prompt the way the workers do (kv/hashing.py)."""

    @property
    def block_size(self) -> int:
        """Tokens a block."""
        ...

    def salted(self, cache_salt: str) -> "PromptHasher":
        """Return the hasher of another cache salt."""
        ...

    def hash_blocks(self, token_ids: Sequence[int]) -> list[BlockHash]:
        """Return one hash for each full block."""
        ...


class LetterBox(Protocol):
    """Sends to workers without waiting (wire/mailbox.py, `Outbox`)."""

    def send(self, endpoint: str, message: Message) -> None:
        """Queue a message; raises PeerUnreachableError if it was not queued."""
        ...

    def forget(self, peer: PeerAddress) -> None:
        """Drop what is queued for a peer that is gone."""
        ...


class LetterSlot(Protocol):
    """Receives from workers and the launcher (router/inspection.py, `InspectedInbox`)."""

    @property
    def num_dropped(self) -> int:
        """Messages that were none, or made no sense."""
        ...

    async def receive(self) -> ToRouter:
        """Wait for the next message."""
        ...


class Staff(Protocol):
    """Ends and starts workers (launch/): the router only asks for it."""

    def retire(self, address: PeerAddress, will_return: bool) -> None:
        """End a worker that has nothing to do any more, for good or to start a new one in its place."""
        ...

    def revive(self, worker_id: WorkerId) -> None:
        """Start a worker that is down."""
        ...


class Observer(Protocol):
    """Hears what happens, to count it (telemetry/). Its methods return at once and raise nothing."""

    def on_tokens(self, num_tokens: int, gap_s: float | None) -> None:
        """Take tokens of an answer that came together, and the time since the ones before; None: they are its first."""
        ...

    def on_ended(self, record: RequestRecord) -> None:
        """Take the record of a request that was taken and has ended."""
        ...

    def on_rejected(self, error: RequestError, *, was_taken: bool = False) -> None:
        """Take note of a request that gets no answer or, if it was taken, no more of it."""
        ...

    def on_heartbeat(self, heartbeat: Heartbeat) -> None:
        """Take what a worker says of itself."""
        ...


class NoStaff:
    """Where nobody can be asked: workers end and start by themselves."""

    def retire(self, address: PeerAddress, will_return: bool) -> None:
        """Do nothing: the worker stays, without requests."""

    def revive(self, worker_id: WorkerId) -> None:
        """Do nothing."""


class Nodes(Protocol):
    """Machines that have joined (router/nodes.py)."""

    def infos(self) -> dict[NodeId, NodeInfo]:
        """Describe each."""
        ...

    def drain(self, node: NodeId) -> None:
        """Have one leave in order. Raises: NotFoundError, UnavailableError."""
        ...


class Border(Protocol):
    """Where machines that have joined are connected (wire/border.py, `RouterBorder`)."""

    dropped: DroppedMessages

    def reread_keys(self) -> None:
        """Let in who has got a key meanwhile."""
        ...

    async def receive(self) -> Arrival:
        """Wait for the next message of a machine."""
        ...

    def send(self, connection: bytes, message: ToNode) -> None:
        """Queue a message; raises PeerUnreachableError if it was not queued."""
        ...


class LocalLetterBox(LetterBox, Protocol):
    """Sends to workers of this machine."""

    def send_frame(self, endpoint: str, frame: bytes) -> None:
        """Queue a message that is encoded already; raises PeerUnreachableError if it was not queued."""
        ...


class HearsOfNodes(Protocol):
    """The router (router/router.py)."""

    def on_message(self, message: ToRouter) -> None:
        """Take in a message of a worker."""
        ...

    def on_node_joined(
        self, node: NodeId, workers: Mapping[WorkerId, Role], costs: Mapping[WorkerId, CostModel]
    ) -> None:
        """Expect these workers."""
        ...

    def on_node_lost(self, worker_ids: list[WorkerId], outlook: str, *, will_return: bool) -> None:
        """Let requests go on elsewhere."""
        ...

    def on_node_left(self, worker_ids: list[WorkerId]) -> None:
        """Forget them."""
        ...

    def drain_worker(self, worker_id: WorkerId, timeout_s: float, *, will_return: bool) -> PeerAddress:
        """Give a worker nothing new, and have it ended."""
        ...


class NoNodes:
    """Where there is one machine only."""

    def infos(self) -> dict[NodeId, NodeInfo]:
        """Describe none."""
        return {}

    def drain(self, node: NodeId) -> None:
        """Raises: NotFoundError."""
        raise NotFoundError(f"there is no machine {node}: this server has no cluster (--cluster-listen)")
