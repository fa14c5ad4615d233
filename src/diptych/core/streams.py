"""Standard streams that are closed, or on a disk that is full: no reason to fail, but to say so where one can."""

import contextlib
import io
import os
import sys
from typing import BinaryIO, TextIO

STANDARD_DESCRIPTORS = (0, 1, 2)


def occupy_standard_descriptors() -> None:
    """Open /dev/null in place of standard streams that the caller of this program has closed.

    Else whatever is opened next gets their numbers, and what somebody prints, here or in a child that inherits them,
    lands in a socket or in the memory of the KV cache.
    """
    for number in STANDARD_DESCRIPTORS:
        try:
            os.fstat(number)
        except OSError:
            # Takes the lowest number that is free: this one. Children shall have it, too.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


class _Stderr(io.TextIOWrapper):
    """Drops what cannot be written now: there is nobody else to complain to."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()


class _Stdout(io.TextIOWrapper):
    """Drops all that comes once something could not be written, and remembers why."""

    error: OSError | None = None

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.error = error
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())  # what is left in buffers goes there, now or when Python ends
        os.close(null)


def use_unfailing_stderr() -> None:
    """Let no log line and no progress fail because stderr does."""
    stream = sys.stderr
    binary = _try_reopen(stream, STANDARD_DESCRIPTORS[2])
    if binary is not None:
        sys.stderr = _Stderr(binary, encoding=_encoding(stream), errors="backslashreplace", line_buffering=True)


def use_unfailing_stdout() -> None:
    """Let printing never fail; `take_stdout_error` says whether it has."""
    stream = sys.stdout
    is_by_line = stream is not None and stream.isatty()
    binary = _try_reopen(stream, STANDARD_DESCRIPTORS[1])
    if binary is not None:
        sys.stdout = _Stdout(binary, encoding=_encoding(stream), line_buffering=is_by_line)


def _try_reopen(stream: TextIO | None, descriptor: int) -> BinaryIO | None:
    """Return what writes to a standard descriptor; None where a test has put something else in its place.

    The stream that was there stays whole: others may have kept it, as log handlers do.
    """
    if stream is not None:  # else it was closed when Python started
        if not isinstance(stream, io.TextIOWrapper) or stream.fileno() != descriptor:
            return None
        stream.flush()
    return open(descriptor, "wb", closefd=False)


def _encoding(stream: TextIO | None) -> str:
    return "utf-8" if stream is None else stream.encoding


def take_stdout_error() -> OSError | None:
    """Return why something that was printed could not be written, once; None if all was."""
    stream = sys.stdout
    if not isinstance(stream, _Stdout):
        return None
    stream.flush()
    error, stream.error = stream.error, None
    return error
