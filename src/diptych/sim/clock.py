"""Virtual time as the clock that live code is given."""

import simpy


class SimulatedClock:
    """A `diptych.core.clock.Clock` that shows a simulation's time."""

    def __init__(self, environment: simpy.Environment) -> None:
        self._environment = environment

    def now_s(self) -> float:
        """Return the virtual time."""
        return float(self._environment.now)

    def computed_s(self) -> float:
        """Return the virtual time, though code takes none of it."""
        return self.now_s()

    def sleep(self, duration_s: float) -> None:
        """Raise AssertionError: nobody may stop a whole simulation; its processes wait for events."""
        raise AssertionError(f"simulated code wants to block for {duration_s} s")
