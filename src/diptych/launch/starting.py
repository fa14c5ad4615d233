"""Waiting for processes that start: for what one says next, or for the end of any."""

import select
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from diptych.core.control import Alive, StartFailure, ToLauncher
from diptych.core.errors import LaunchError
from diptych.launch.process import ChildProcess, describe_exit

Answer = TypeVar("Answer", bound=msgspec.Struct)


class StartWatch:
    """Watches all processes of a start while one of them is waited for."""

    def __init__(self, children: Callable[[], Sequence[ChildProcess]], timeout_s: float) -> None:
        """`children`: those that have been started so far. `timeout_s`: of the whole start, from now on."""
        self._children = children
        self._timeout_s = timeout_s
        self._deadline_s = time.monotonic() + timeout_s

    def expect(self, child: ChildProcess, kind: type[Answer]) -> Answer:
        """Wait for a message of `kind` from `child`.

        Raises: LaunchError if something else comes, any process ends, or the time is over.
        """
        while True:
            message = self._next_message(child)
            if not isinstance(message, Alive):
                break
        if isinstance(message, StartFailure):
            raise LaunchError(f"{child.name}: {message.message}")
        if not isinstance(message, kind):
            raise LaunchError(f"{child.name} said {type(message).__name__} where {kind.__name__} was expected")
        return message

    def wait_until_up(self, child: ChildProcess) -> None:
        """Wait until the loop of a process turns. Raises: LaunchError, as `expect`."""
        message = self._next_message(child)
        if isinstance(message, StartFailure):
            raise LaunchError(f"{child.name}: {message.message}")

    def _next_message(self, child: ChildProcess) -> ToLauncher:
        while True:
            self._raise_if_ended()
            ready, _, _ = select.select([child.control], [], [], 0.1)
            if ready:
                break
            if time.monotonic() > self._deadline_s:
                raise LaunchError(
                    f"{child.name} was not ready within {self._timeout_s:.0f} s; give it more with --start-timeout-s"
                )
        try:
            return child.control.receive(1.0)
        except LaunchError:
            child.wait(1.0)
            self._raise_if_ended()
            raise

    def _raise_if_ended(self) -> None:
        for child in self._children():
            status = child.poll()
            if status is None:
                continue
            try:
                message = child.control.receive(0.1)
            except LaunchError:
                message = None
            reason = message.message if isinstance(message, StartFailure) else describe_exit(status)
            raise LaunchError(f"{child.name} ended while starting: {reason}")
