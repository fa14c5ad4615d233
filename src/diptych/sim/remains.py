"""What workers leave behind that die: the KV in their machine's memory, which outlives them (docs/adr/0014).

Whoever goes on with a request on the same machine takes over what was computed of it; copying that takes no time here
(0.1 ms a block on a live machine). The dead worker's own successor finds full blocks only, and its prefix cache.
"""

from dataclasses import dataclass, field

from diptych.core.ids import RequestId, WorkerId
from diptych.core.messages import PeerAddress

Granted = tuple[PeerAddress, int]
"""A prompt that was read for another worker: its owner, and the epoch of its blocks."""
Attempt = tuple[WorkerId, RequestId, int]
"""A request on a worker, and the number of the attempt that it was there."""


@dataclass(frozen=True, slots=True)
class Remains:
    """Of one dead worker, or of all together."""

    read: dict[Granted, int] = field(default_factory=dict)
    """How many tokens of prompts are in the blocks of owners that live."""
    computed: dict[Attempt, int] = field(default_factory=dict)
    """How many tokens of prompts and answers are in the blocks that the dead worker owned."""

    def add(self, others: "Remains") -> None:
        """Keep what another worker has left."""
        self.read.update(others.read)
        self.computed.update(others.computed)

    def remove(self, others: "Remains") -> None:
        """Forget what another worker has left."""
        for granted in others.read:
            self.read.pop(granted, None)
        for attempt in others.computed:
            self.computed.pop(attempt, None)
