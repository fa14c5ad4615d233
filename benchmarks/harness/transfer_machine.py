"""A machine for transfer benchmarks: memory in blocks, and an exchange. As a program: one that takes what it is sent.

    python -m harness.transfer_machine NUM_BLOCKS BLOCK_BYTES TRANSPORT

prints the address of its receiver, has granted all its blocks, and ends with its standard input. It also takes bytes
over a plain socket, at the second address that it prints, as fast as a program in Python can: what transfers are
compared with.
"""

import contextlib
import mmap
import os
import socket
import sys
import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from diptych.core.ids import BlockId, NodeId, WorkerId
from diptych.kv.layout import CacheTensor, KVLayout
from diptych.transfer.exchange import Exchange
from diptych.transfer.frames import Facts
from diptych.transfer.handshake import TRANSFER_PROTOCOL, Identity
from diptych.transfer.memory import BlockMemory
from diptych.transfer.transports import open_transports

HOST = "127.0.0.1"
SECRET = bytes(32)
SENDER = (WorkerId("sender"), 1)
EPOCH = 1


class TransferMachine:
    """Memory of so many blocks, touched, and what moves it."""

    def __init__(
        self, name: str, num_blocks: int, block_bytes: int, transport: str, on_change: Callable[[], None]
    ) -> None:
        layout = KVLayout.of([CacheTensor("kv", (block_bytes,), "u8")], 32)
        descriptor = os.memfd_create("blocks")
        os.ftruncate(descriptor, num_blocks * block_bytes)
        content = memoryview(mmap.mmap(descriptor, num_blocks * block_bytes))
        self.content: npt.NDArray[np.uint8] = np.frombuffer(content, np.uint8)
        self.content[:] = 1
        self.memory = BlockMemory(content, layout, num_blocks, descriptor, 0)
        facts = Facts(
            protocol=TRANSFER_PROTOCOL,
            diptych="benchmark",
            engine="none",
            model_key="none",
            layout=layout.fingerprint,
            block_size=32,
            block_bytes=block_bytes,
        )
        identity = Identity(WorkerId(name), 1, NodeId(name), facts, SECRET)
        transports = open_transports([transport], HOST, identity, self.memory)
        self.transport = next(iter(transports), "tcp")
        """What there is of what was asked for."""
        self.exchange = Exchange(HOST, identity, self.memory, transports, on_change)


def _take_plain(listener: socket.socket, content: memoryview) -> None:
    """Take messages of a length and so many bytes, and answer each with a byte."""
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, contextlib.suppress(OSError):
            while head := connection.recv(8, socket.MSG_WAITALL):
                part = content[: int.from_bytes(head, "big")]
                while part:
                    part = part[connection.recv_into(part) :]
                connection.sendall(b"1")


def main() -> None:
    """Serve until standard input ends."""
    num_blocks, block_bytes, transport = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    machine = TransferMachine("receiver", num_blocks, block_bytes, transport, lambda: None)
    machine.exchange.receiver.grants.open(EPOCH, SENDER, map(BlockId, range(num_blocks)), [])
    listener = socket.create_server((HOST, 0))
    taker = threading.Thread(target=_take_plain, args=(listener, machine.content.data), daemon=True)
    taker.start()
    print(machine.exchange.receiver.endpoint, listener.getsockname()[1], machine.transport, flush=True)
    sys.stdin.read()
    machine.exchange.close()


if __name__ == "__main__":
    main()
