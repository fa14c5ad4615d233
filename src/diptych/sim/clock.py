"""Virtual time: the clock that live code is given, and calls that are due at some moment of it."""

from collections.abc import Callable
from typing import Any

import simpy
from simpy.events import NORMAL


class _Call(simpy.Event):
    """An event that calls something when it is due: what a `simpy.Timeout` with a callback does, without its lists."""

    _ok, _value = True, None

    def __init__(self, environment: simpy.Environment, delay_s: float, call: Callable[[], None]) -> None:
        if delay_s < 0:
            raise AssertionError(f"something is to be called {-delay_s} s ago")
        self.call = call
        self.callbacks = _CALLBACKS
        environment.schedule(self, NORMAL, delay_s)

    def __repr__(self) -> str:
        return f"_Call({self.call!r})"


_CALLBACKS: list[Callable[[Any], None]] = [lambda event: event.call()]
"""The same for all: what is due is the event's own."""


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
        _Call(self.environment, delay_s, call)

    def call_every(self, interval_s: float, call: Callable[[], None]) -> None:
        """Have something called after each interval, until the end."""

        def again() -> None:
            call()
            self.call_in(interval_s, again)

        self.call_in(interval_s, again)
