"""The first steps of every process that the launcher starts as `python -m MODULE --control FD`."""

import argparse
import logging
import os
import resource
import signal
import sys
from typing import TypeVar

import msgspec

from diptych.core.streams import use_unfailing_stderr
from diptych.wire.control import ControlChannel

Incoming = TypeVar("Incoming", bound=msgspec.Struct)


def join_launcher(kinds: object) -> ControlChannel[Incoming]:
    """Open the socket to the launcher, over which messages of `kinds` come.

    Log to stderr as far as that can be written to, leave Ctrl-C to the launcher, and open as many files as the system
    allows. What this process makes is readable by its user alone.
    """
    parser = argparse.ArgumentParser(description="A process of `diptych serve`, which alone starts it.")
    parser.add_argument("--control", type=int, required=True, help="descriptor of the socket to the launcher")
    descriptor = parser.parse_args().control
    use_unfailing_stderr()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(name)s: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.umask(0o077)  # sockets are for this user alone, as is the directory that they are in
    _, most_descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_descriptors, most_descriptors))  # each client takes one
    return ControlChannel.of_descriptor(descriptor, kinds)
