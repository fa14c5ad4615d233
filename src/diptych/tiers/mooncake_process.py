"""A process that talks to a Mooncake Store for one worker: `python -m diptych.tiers.mooncake_process`.

The store's client is a library that holds Python's lock while it connects, waits for as long as it likes, and may end
its process. None of that may happen in a worker. Here each channel has a thread that answers one question after the
other; who waits too long for an answer ends the process and starts another one. It ends with its worker, however that
ends, and gives no memory to the store: what it has stored stays. It has no standard error, where the library would
write lines of its own between those of the log; what it has to say goes over the channels.
"""

import argparse
import ctypes
import mmap
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from diptych.core.errors import LaunchError, TierError
from diptych.tiers.store_messages import (
    Answer,
    Channel,
    Done,
    Drop,
    Fetch,
    Fetched,
    Found,
    Look,
    Ping,
    Put,
    Question,
    Stored,
    Trouble,
)
from diptych.transfer.mooncake import INSTALL, protocol
from diptych.wire.border import HostPort
from diptych.wire.control import ControlChannel

PR_SET_PDEATHSIG = 1
CONNECT_TIMEOUT_S = 2.0
LIBRARY_SETTINGS = {
    "MC_LOG_LEVEL": "ERROR",
    "MC_RPC_TIMEOUT_MS": "1000",
    "MC_RPC_CONNECT_TIMEOUT_MS": "1000",
    "MC_STORE_CLIENT_SETUP_RETRIES": "5",
    "MC_STORE_CLIENT_METRIC": "0",
    "MC_TCP_PROGRESS_TIMEOUT_SEC": "1",
    "MC_TCP_STATUS_TIMEOUT_SEC": "1",
}
"""Read by the library once, and only where the environment does not say otherwise: it waits for 30 s by itself."""
UNUSED_BUFFER_BYTES = 2**20
"""The library's own, for calls that are not made here."""
EXISTS = 1
NO_ROOM = -200
UNREACHABLE = frozenset({-900, -901})
"""Its master says nothing, or not in time. The library's own look at its health sees neither."""
IS_THERE_ALREADY = -705


class Slots:
    """Memory for blocks that the worker maps too."""

    def __init__(self, descriptor: int, slot_bytes: int) -> None:
        self.num_bytes = os.fstat(descriptor).st_size
        self.slot_bytes = slot_bytes
        self._memory = mmap.mmap(descriptor, self.num_bytes)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))

    def address_of(self, slot: int) -> int:
        """Return where a slot begins."""
        return self.address + slot * self.slot_bytes


class StoreClient:
    """Mooncake's client, as far as it is needed. Shared by threads, as the library allows."""

    def __init__(self, master: HostPort, host: str, slots: Slots) -> None:
        """`host`: this machine's address; empty: the one that leads to the master.

        Raises: TierError if the store cannot be reached, or the library is not there.
        """
        self._slots = slots
        self._store = _load_library()
        try:
            own = host or master.own_address()
            socket.create_connection(master, CONNECT_TIMEOUT_S).close()  # the library would try for a long time
        except OSError as error:
            raise TierError(f"its master, {master}, cannot be reached ({error.strerror or error})") from None
        status = self._store.setup(own, "P2PHANDSHAKE", 0, UNUSED_BUFFER_BYTES, protocol(), "", str(master))
        if status != 0:
            raise TierError(f"its master, {master}, does not answer (status {status})")
        if self._store.register_buffer(slots.address, slots.num_bytes) != 0:
            raise TierError(f"its client does not take {slots.num_bytes} bytes of memory")

    def answer(self, question: Question) -> Answer:
        """Do what is asked. Raises: TierError if the store cannot be used."""
        match question:
            case Look(keys=keys):
                return self._look(keys)
            case Fetch():
                return self._fetch(question)
            case Put():
                return self._put(question)
            case Drop(key=key):
                self._store.remove(key, True)  # whoever reads it at this moment compares checksums
                return Done()
            case Ping():
                self._look(["ping"])
                return Done()

    def _look(self, keys: list[str]) -> Found:
        codes = self._store.batch_is_exist(keys)
        _require_master(codes)
        return Found(next((number for number, code in enumerate(codes) if code != EXISTS), len(codes)))

    def _fetch(self, question: Fetch) -> Fetched:
        addresses = [self._slots.address_of(slot) for slot in question.slots]
        codes = self._store.batch_get_into(question.keys, addresses, [self._slots.slot_bytes] * len(addresses))
        _require_master(codes)
        return Fetched([max(code, 0) for code in codes])

    def _put(self, question: Put) -> Stored:
        begin_s = time.process_time()
        code = self._store.put_from(question.key, self._slots.address_of(question.slot), self._slots.slot_bytes)
        cpu_s = time.process_time() - begin_s
        if code in {0, IS_THERE_ALREADY}:
            return Stored(cpu_s)
        _require_master([code])
        if code == NO_ROOM:
            return Stored(cpu_s, "it has no room now, or no machine gives it memory (`mooncake_client`)")
        return Stored(cpu_s, f"it takes no blocks (status {code})")


def _require_master(codes: Sequence[int]) -> None:
    """Raises: TierError if one of these says that the master could not be asked."""
    if not UNREACHABLE.isdisjoint(codes):
        raise TierError("its master does not answer")


def _load_library() -> Any:
    for name, value in LIBRARY_SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        from mooncake.store import MooncakeDistributedStore  # noqa: PLC0415  an extra
    except ImportError as error:
        raise TierError(f"Mooncake's store is not there ({error}): {INSTALL}") from None
    return MooncakeDistributedStore()


def serve(channel: ControlChannel[Question], answer: Callable[[Question], Answer]) -> None:
    """Answer what comes over a channel until the worker closes it; then end the process."""
    try:
        while True:
            channel.send(_answer_or_trouble(channel.receive(None), answer))
    except LaunchError:
        os._exit(0)  # the library's own end may take any time
    except Exception as error:
        channel.send(Trouble(f"its client has failed ({error!r})"))
        os._exit(1)


def _answer_or_trouble(question: Question, answer: Callable[[Question], Answer]) -> Answer:
    try:
        return answer(question)
    except TierError as error:
        return Trouble(str(error))


def end_with(parent: int) -> None:
    """End this process when the thread that started it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def main() -> None:
    """Run it; started by `MooncakeLink` alone."""
    parser = argparse.ArgumentParser(description="A process of `diptych serve`, which alone starts it.")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--channels", type=int, nargs=len(Channel), required=True)
    parser.add_argument("--memory", type=int, required=True)
    parser.add_argument("--slot-bytes", type=int, required=True)
    parser.add_argument("--master", required=True)
    parser.add_argument("--host", required=True)
    arguments = parser.parse_args()
    end_with(arguments.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channels: list[ControlChannel[Question]] = [
        ControlChannel.of_descriptor(descriptor, Question) for descriptor in arguments.channels
    ]
    first = channels[Channel.STORES]
    try:
        master = HostPort.parse(arguments.master, "--kv-store")
        client = StoreClient(master, arguments.host, Slots(arguments.memory, arguments.slot_bytes))
    except TierError as error:
        first.send(Trouble(str(error)))
        return
    first.send(Done())
    threads = [
        threading.Thread(target=serve, args=(channel, client.answer), name=kind.name)
        for kind, channel in zip(Channel, channels, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
    os._exit(0)
