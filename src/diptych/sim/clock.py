"""Virtual time: the clock that live code is given, and calls that are due at some moment of it."""

from collections.abc import Callable

import simpy


class VirtualTime:
    """A `diptych.core.clock.Clock` that shows a simulation's time. Calls at one moment come in the order of asking."""

    def __init__(self) -> None:
        self.environment = simpy.Environment(0.0)

    def now_s(self) -> float:
        """Return the virtual time."""
        now_s: float = self.environment.now
        return now_s

    def computed_s(self) -> float:
        """Return the virtual time, though code takes none of it."""
        return self.now_s()

    def sleep(self, duration_s: float) -> None:
        """Raise AssertionError: nobody may stop a whole simulation; things are called when their time has come."""
        raise AssertionError(f"simulated code wants to block for {duration_s} s")

    def call_in(self, delay_s: float, call: Callable[[], None]) -> None:
        """Have something called after a delay of at least 0."""
        self.timeout(delay_s).callbacks.append(lambda _event: call())

    def timeout(self, delay_s: float) -> simpy.Timeout:
        """Return an event that is due after a delay, for callbacks: the cheapest that simpy has."""
        return simpy.Timeout(self.environment, delay_s)

    def call_every(self, interval_s: float, call: Callable[[], None]) -> None:
        """Have something called after each interval, until the end."""

        def again() -> None:
            call()
            self.call_in(interval_s, again)

        self.call_in(interval_s, again)
