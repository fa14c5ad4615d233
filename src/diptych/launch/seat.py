"""The place of one process in the cluster, and the lives that fill it one after the other."""

from dataclasses import dataclass, field
from enum import Enum, auto

from diptych.core.ids import FIRST_ROUTER, RouterId, WorkerId
from diptych.launch.process import ChildProcess
from diptych.launch.starvation import Starvation


class SeatState(Enum):
    """Where the present life is."""

    DOWN = auto()
    """There is none; a new one starts at `due_s`, if that is set."""
    COMPILING = auto()
    """It loads the model, or whatever it needs before it can be told more."""
    FENCING = auto()
    """A worker that could begin, but others may still be writing into its blocks for the life before."""
    WARMING = auto()
    """It has been told all; its loop does not turn yet."""
    UP = auto()
    """Its loop turns, or it is not heard of for too long and will be killed."""


@dataclass(slots=True)
class Seat:
    """Owned by the supervisor's thread. All times are on the monotonic clock."""

    name: str
    worker_id: WorkerId | None
    """None: a frontend."""
    child: ChildProcess | None
    incarnation: int
    router: RouterId = FIRST_ROUTER
    """Of a frontend: which."""
    state: SeatState = SeatState.UP
    heard_s: float = 0.0
    """When it was last heard of, while it is up; else when the present state began."""
    starvation: Starvation | None = None
    """Since it has been silent for suspiciously long; None: it has not."""
    due_s: float | None = None
    deaths_s: list[float] = field(default_factory=list)
    """When it ended without having been asked to."""
    retirement: bool | None = None
    """Whether a new one shall follow, once it has been asked to end; None: it has not."""
    writers: set[tuple[WorkerId, int]] = field(default_factory=set)
    """Other workers' lives that may still be writing into blocks for the life of this seat that had blocks last."""
    wrote_for: int = 0
    """Which life that is."""
    accused: set[WorkerId] = field(default_factory=set)
    """Workers of which this life has said that they do not answer."""

    @property
    def has_blocks(self) -> bool:
        """Whether this life has been leased its blocks, so that others may have to do with it."""
        return self.state in {SeatState.WARMING, SeatState.UP}

    @property
    def last_ended(self) -> int:
        """The last life that is over; 0: none is."""
        return self.incarnation if self.child is None else self.incarnation - 1

    def enter(self, state: SeatState, now_s: float) -> None:
        """Go on to another state."""
        self.state = state
        self.hear(now_s)

    def hear(self, now_s: float) -> None:
        """Note that it has just been heard of."""
        self.heard_s, self.starvation = now_s, None
