"""Who has an inbox in this server's private directory: the only ones to be written to on a stranger's word."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from diptych.core.ids import WorkerId
from diptych.core.messages import PeerAddress, Role

SCHEME = "ipc://"


def inbox_name(worker_id: WorkerId, incarnation: int) -> str:
    """Return what the inbox of this life of a worker is called in the directory."""
    return f"{worker_id}-{incarnation}"


class Neighbours:
    """The workers of one server, by their roles and sockets."""

    def __init__(
        self, own_endpoint: str, workers: Mapping[WorkerId, Role], lives: Mapping[WorkerId, int] | None = None
    ) -> None:
        """`lives`: of workers, as far as the launcher has told."""
        self._directory = own_endpoint.rpartition("/")[0]
        self._workers = dict(workers)
        self._seen: set[tuple[WorkerId, int]] = set((lives or {}).items())
        """Lives of which the launcher has told, or whose inboxes have been seen: no more than there ever were."""

    def knows(self, worker_id: WorkerId) -> bool:
        """Tell whether the server has such a worker."""
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
            for path in Path(self._directory.removeprefix(SCHEME)).iterdir():
                worker_id, _, number = path.name.rpartition("-")
                if worker_id in self._workers and number.isdecimal():
                    self._seen.add((WorkerId(worker_id), int(number)))

    def try_find(self, address: PeerAddress) -> Role | None:
        """Return the role of the life of a worker that has its inbox there; None if there is none."""
        worker_id, incarnation = address.worker_id, address.incarnation
        if not self.has_inbox(worker_id, incarnation):
            return None
        is_there = address.endpoint == f"{self._directory}/{inbox_name(worker_id, incarnation)}"
        return self._workers[worker_id] if is_there else None

    def _path(self, worker_id: WorkerId, incarnation: int) -> Path:
        return Path(self._directory.removeprefix(SCHEME)) / inbox_name(worker_id, incarnation)
