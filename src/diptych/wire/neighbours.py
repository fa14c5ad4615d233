"""Who has an inbox in this server's private directory: the only ones to be written to on a stranger's word.

Workers of other machines are not to be seen from here. Letters to them go by way of the router, which knows who there
is; here it is only checked that an address is one of theirs, and not one of this machine in disguise.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from diptych.core.addresses import (
    HEAD_NODE,
    IPC_SCHEME,
    inbox_name,
    local_name,
    node_worker_id,
    public_endpoint,
    split_node_endpoint,
)
from diptych.core.ids import NO_NODE, NodeId, WorkerId
from diptych.core.messages import PeerAddress, Role


class Neighbours:
    """The workers of one machine, by their roles and sockets."""

    def __init__(
        self,
        own_endpoint: str,
        workers: Mapping[WorkerId, Role],
        lives: Mapping[WorkerId, int] | None = None,
        node: NodeId = NO_NODE,
    ) -> None:
        """`lives`: of workers, as far as the launcher has told. `node`: what the machine is called in a cluster."""
        self._directory = own_endpoint.rpartition("/")[0]
        self._node = node
        self._workers = dict(workers)
        self._ids = {local_name(worker_id): worker_id for worker_id in workers}
        self._seen: set[tuple[WorkerId, int]] = set((lives or {}).items())
        """Lives of which the launcher has told, or whose inboxes have been seen: no more than there ever were."""

    def knows(self, worker_id: WorkerId) -> bool:
        """Tell whether the machine has such a worker."""
        return worker_id in self._workers

    def has_inbox(self, worker_id: WorkerId, incarnation: int) -> bool:
        """Tell whether there is, or was when last asked, the inbox of this life of a worker."""
        life = (worker_id, incarnation)
        if life not in self._seen and self.knows(worker_id) and self._path(worker_id, incarnation).exists():
            self._seen.add(life)
        return life in self._seen

    def look_around(self) -> None:
        """Take note of all inboxes that are there now, should something delete them before their owners speak."""
        with contextlib.suppress(OSError):
            for path in Path(self._directory.removeprefix(IPC_SCHEME)).iterdir():
                name, _, number = path.name.rpartition("-")
                if name in self._ids and number.isdecimal():
                    self._seen.add((self._ids[name], int(number)))

    def may_have_been(self, worker_id: WorkerId, incarnation: int) -> bool:
        """Tell whether there is, or was, such a life of a worker here, or may have been on another machine."""
        return self.has_inbox(worker_id, incarnation) if self.knows(worker_id) else bool(self._node)

    def try_find(self, address: PeerAddress) -> Role | None:
        """Return the role of the life of a worker that has its inbox there; None if there is none."""
        if self._node and address.node != self._node:
            return _role_elsewhere(address)
        worker_id, incarnation = address.worker_id, address.incarnation
        if not self.has_inbox(worker_id, incarnation):
            return None
        own = public_endpoint(f"{self._directory}/{inbox_name(worker_id, incarnation)}", self._node)
        return self._workers[worker_id] if (address.endpoint, address.node) == (own, self._node) else None

    def _path(self, worker_id: WorkerId, incarnation: int) -> Path:
        return Path(self._directory.removeprefix(IPC_SCHEME)) / inbox_name(worker_id, incarnation)


def _role_elsewhere(address: PeerAddress) -> Role | None:
    """Return the role of a worker of another machine, which its name tells; None if the address is no worker's."""
    worker_id, node = address.worker_id, address.node
    name = WorkerId(local_name(worker_id))
    if not node or worker_id != (name if node == HEAD_NODE else node_worker_id(node, name)):
        return None
    if split_node_endpoint(address.endpoint) != (node, inbox_name(worker_id, address.incarnation)):
        return None
    kind, _, number = name.rpartition("-")
    return Role(kind) if kind in set(Role) and number.isdecimal() else None
