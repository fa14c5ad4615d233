"""Ports for programs that have to be told one before they listen."""

import socket
from contextlib import ExitStack
from pathlib import Path
from random import SystemRandom

import pytest

LOWEST = 10_000
NUM_TRIES = 100


def free_port(num_in_a_row: int = 1) -> int:
    """Return the first of so many ports at which nobody listens, on any address.

    It is below those that the kernel gives to connections: one of these may be another test's a moment later.
    """
    first_of_connections = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(NUM_TRIES):
        first = SystemRandom().randrange(LOWEST, first_of_connections - num_in_a_row)
        with ExitStack() as held:
            try:
                for port in range(first, first + num_in_a_row):
                    held.enter_context(socket.create_server(("", port)))
            except OSError:
                continue
        return first
    pytest.fail(f"no {num_in_a_row} free ports in a row between {LOWEST} and {first_of_connections}")
