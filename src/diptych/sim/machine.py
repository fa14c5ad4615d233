"""Workers on one machine: how their phases slow each other down."""

from typing import Protocol

from diptych.sim.plan import Interference


class Busy(Protocol):
    """A worker's steps, as its neighbours feel them."""

    @property
    def is_reading(self) -> bool:
        """Whether it is in a step of prompts alone."""
        ...

    @property
    def is_writing(self) -> bool:
        """Whether it is in a step that continues answers."""
        ...

    def wake(self) -> None:
        """Plan anew with the next step."""
        ...


class Machine:
    """One machine. A step goes at the speed that its neighbours leave it at its beginning."""

    def __init__(self, name: str, interference: Interference | None) -> None:
        """`interference`: None: there is none."""
        self.name = name
        self._interference = interference
        self._busy: list[Busy] = []
        self._phases = (False, False)

    @property
    def has_interference(self) -> bool:
        """Whether its workers slow each other down."""
        return self._interference is not None

    def add(self, one: Busy) -> None:
        """Take in a worker."""
        self._busy.append(one)

    def remove(self, one: Busy) -> None:
        """Forget a worker, which is dead."""
        self._busy.remove(one)
        self.on_change(one)

    def factor(self, one: Busy, *, is_writing: bool) -> float:
        """Return how many times as long as alone a step takes that begins now."""
        if self._interference is None:
            return 1.0
        others = [other for other in self._busy if other is not one]
        if is_writing:
            return self._interference.decode_factor if any(other.is_reading for other in others) else 1.0
        return self._interference.prefill_factor if any(other.is_writing for other in others) else 1.0

    def on_change(self, by: Busy) -> None:
        """Let everybody else plan anew if `by` has begun or ended a phase here."""
        if self._interference is None:
            return
        phases = any(one.is_reading for one in self._busy), any(one.is_writing for one in self._busy)
        if phases != self._phases:
            self._phases = phases
            for one in self._busy:
                if one is not by:
                    one.wake()
