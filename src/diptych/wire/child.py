"""The first steps of every process that the launcher starts as `python -m MODULE --control FD`."""

import argparse
import os
import resource
import signal
from typing import TypeVar, get_args

import msgspec

from diptych.core.logs import LogFormat, LogLevel, LogSettings, configure_logging
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
    parser.add_argument("--name", default="engine", help="what it is called in the log")
    parser.add_argument("--log-format", choices=get_args(LogFormat), default="text")
    parser.add_argument("--log-level", choices=get_args(LogLevel), default="warning")
    arguments = parser.parse_args()
    use_unfailing_stderr()
    configure_logging(arguments.name, LogSettings(arguments.log_format, arguments.log_level))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.umask(0o077)  # sockets are for this user alone, as is the directory that they are in
    _, most_descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_descriptors, most_descriptors))  # each client takes one
    return ControlChannel.of_descriptor(arguments.control, kinds)
