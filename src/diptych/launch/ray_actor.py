"""A machine's agent as an actor of Ray's: where Ray has room, `diptych worker` in the actor's process.

Ray places and restarts it, and that is all: it joins the router like any machine, and no message goes through Ray.
"""

import os
import sys
import threading
from pathlib import Path
from typing import Any

from diptych.core.errors import DiptychError
from diptych.core.ids import NodeId
from diptych.launch.node import Node
from diptych.wire.border import HostPort
from diptych.wire.cluster_keys import read_node_keys

WATCH_S = 0.2
EXIT_STATUS_FAILED = 1


class MachineActor:
    """Lives as long as its machine serves. If that fails, the process ends, and Ray starts another."""

    def __init__(self, name: str, router: tuple[str, int], keys: str, own: dict[str, Any], timeout_s: float) -> None:
        """Join. Raises: DiptychError, which Ray passes on to whoever asks next."""
        self._name = name
        self._node = Node(NodeId(name), HostPort(*router), read_node_keys(Path(keys)), own)
        self._node.start(timeout_s, None, lambda _: None)
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def _watch(self) -> None:
        try:
            while not self._node.wait(WATCH_S):
                pass
        except DiptychError as error:
            print(f"{self._name}: {error}", file=sys.stderr, flush=True)  # noqa: T201  to Ray's log
            self._node.kill()
            os._exit(EXIT_STATUS_FAILED)
        self._node.stop()

    def name(self) -> str:
        """Return its name: an answer says that it has joined."""
        return self._name

    def leave(self) -> None:
        """Let answers end, or go on elsewhere, and end the workers."""
        self._node.stop()
