"""The receiving end of transfers: listens, lets senders of this cluster in, and takes the blocks that are granted.

A thread for each connection; there is one for each worker that sends here. What it may do it asks the grants
(open_grants.py) before every order, and within an order before every block.
"""

import contextlib
import logging
import socket
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence

from diptych.core.errors import TransferError, TransferRefusedError
from diptych.core.ids import BlockId
from diptych.transfer.base import INLINE, Source, Transport
from diptych.transfer.frames import Done, Failed, Fetch, Hello, Push
from diptych.transfer.handshake import Admission, Identity
from diptych.transfer.memory import BlockMemory, BlockPair
from diptych.transfer.open_grants import Life, OpenGrants
from diptych.transfer.tcp import Connection

MAX_CONNECTIONS = 256
log = logging.getLogger(__name__)


class Receiver:
    """Listens from its making to `close`. Its worker's loop opens and closes `grants`."""

    def __init__(  # noqa: PLR0913, PLR0917  the parts that it works with
        self,
        host: str,
        identity: Identity,
        memory: BlockMemory,
        transports: Mapping[str, Transport],
        on_change: Callable[[], None],
        reached_at: str | None = None,
    ) -> None:
        """Listen at a free port of `host`. `reached_at`: how senders reach this machine, if that is something else.

        `on_change` is called, by other threads, when blocks have landed.
        `transports`: by which blocks are taken if the sender has them too, the best first.

        Raises: TransferError if it cannot.
        """
        self.grants = OpenGrants()
        self._identity = identity
        self._memory = memory
        self._transports = dict(transports)
        self._on_change = on_change
        self._connections: dict[Connection, Life | None] = {}
        self._lock = threading.Lock()
        self._is_closing = False
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server((host, 0), family=family)
        except OSError as error:
            raise TransferError(f"cannot listen for KV at {host}: {error}") from None
        port: int = self._listener.getsockname()[1]
        shown = host if reached_at is None else reached_at
        self.endpoint = f"[{shown}]:{port}" if ":" in shown else f"{shown}:{port}"
        """Where senders reach it."""
        threading.Thread(target=self._accept, name="kv-receiver", daemon=True).start()

    def close(self) -> None:
        """Hang up and listen no more. What is moving ends soon; its grants stay busy until then."""
        with self._lock:
            self._is_closing = True
            connections = list(self._connections)
        with contextlib.suppress(OSError):  # wakes the thread that accepts
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in connections:
            connection.shutdown()

    def hang_up(self, life: Life) -> None:
        """Cut the connections of a sender that is gone, or is to stop at once."""
        with self._lock:
            connections = [connection for connection, owner in self._connections.items() if owner == life]
        for connection in connections:
            connection.shutdown()

    def _accept(self) -> None:
        while True:
            try:
                endpoint, _ = self._listener.accept()
            except OSError:
                return
            connection = Connection(endpoint)
            with self._lock:
                is_welcome = not self._is_closing and len(self._connections) < MAX_CONNECTIONS
                if is_welcome:
                    self._connections[connection] = None
            if is_welcome:
                threading.Thread(target=self._serve, args=(connection,), name="kv-connection", daemon=True).start()
            else:
                connection.close()

    def _serve(self, connection: Connection) -> None:
        """Serve a connection to its end."""
        session: _Session | None = None
        try:
            session = self._admit(connection)
            while True:
                session.serve_next()
        except TransferError as error:
            with self._lock:
                is_expected = self._is_closing
            if not is_expected:
                log.info("%s has lost a sender of KV: %s", self._identity.worker_id, error)
        finally:
            if session is not None:
                session.close()
            with self._lock:
                del self._connections[connection]
            connection.close()

    def _admit(self, connection: Connection) -> "_Session":
        admission = Admission(connection, self._identity)
        hello = admission.hear()
        life = (hello.worker_id, hello.incarnation)
        self.hang_up(life)  # it has come again: whatever it left behind is of no use
        with self._lock:
            self._connections[connection] = life
        name, source = self._choose(hello)
        session = _Session(connection, life, self._memory, self.grants, source, self._on_change)
        admission.welcome(hello, name)
        return session

    def _choose(self, hello: Hello) -> tuple[str, Source | None]:
        """Return by which transport to take this sender's blocks; none: inline."""
        for name, transport in self._transports.items():
            if name not in hello.transports:
                continue
            try:
                return name, transport.connect(hello.transports[name], hello.num_blocks)
            except TransferError as error:
                log.warning("%s takes the blocks of %s inline: %s", self._identity.worker_id, hello.worker_id, error)
        return INLINE, None


class _Session:
    """A sender that has been let in. Owned by its connection's thread."""

    def __init__(  # noqa: PLR0913, PLR0917  the parts that it works with
        self,
        connection: Connection,
        life: Life,
        memory: BlockMemory,
        grants: OpenGrants,
        source: Source | None,
        on_landed: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._life = life
        self._memory = memory
        self._grants = grants
        self._source = source
        self._on_landed = on_landed

    def close(self) -> None:
        """Forget the sender's memory."""
        if self._source is not None:
            self._source.close()

    def serve_next(self) -> None:
        """Wait for the next order and carry it out. Raises: TransferError when the connection is of no use any more."""
        order = self._connection.receive(may_be_idle=True)
        try:
            match order:
                case Push():
                    self._on_push(order)
                    self._on_landed()
                    self._connection.send(Done())
                case Fetch(epoch=epoch, blocks=blocks):
                    with self._grants.reading(epoch, self._life, blocks):
                        self._connection.send(Done(), self._memory.parts(blocks))
                case _:
                    raise TransferError(f"{type(order).__name__} is no order")
        except _NotTakenError as error:
            self._connection.send(Failed(reason=str(error), is_refused=False))
        except TransferRefusedError as error:
            self._connection.send(Failed(reason=str(error), is_refused=True))

    def _on_push(self, push: Push) -> None:
        """Fill blocks. Raises: TransferError; TransferRefusedError and _NotTakenError leave the connection usable."""
        try:
            with self._grants.filling(push.epoch, self._life, push.targets):
                self._take(push)
        except TransferRefusedError:  # before the first byte; they are on their way all the same
            if push.is_inline:
                self._connection.discard(len(push.sources) * self._memory.layout.block_bytes)
            raise

    def _take(self, push: Push) -> None:
        if len(push.sources) != len(push.targets):
            raise TransferRefusedError(f"{len(push.sources)} blocks for {len(push.targets)}")
        if push.is_inline:
            for target in push.targets:
                self._connection.receive_parts(
                    self._memory.parts([target]), may_go_on=lambda: self._grants.is_open(push.epoch)
                )
        else:
            self._read(push)
        self._compare(push)
        if push.is_inline:  # what is read may have been something else by then: its sender must say that it was not
            self._grants.note_landed(push.epoch, push.targets)

    def _read(self, push: Push) -> None:
        if self._source is None:
            raise TransferRefusedError("blocks are to come inline here")
        pairs = [BlockPair(target, source) for target, source in zip(push.targets, push.sources, strict=True)]
        try:
            self._source.read(pairs)
        except TransferError as error:
            raise _NotTakenError(str(error)) from None

    def _compare(self, push: Push) -> None:
        if push.checksums is not None and push.checksums != checksums_of(self._memory, push.targets):
            raise _NotTakenError("blocks have changed on their way")


class _NotTakenError(TransferError):
    """Blocks did not arrive as they should, by a fault that may not come again, or not by another way."""


def checksums_of(memory: BlockMemory, block_ids: Sequence[BlockId]) -> list[int]:
    """Return the CRC-32 of each block."""
    checksums: list[int] = []
    for block_id in block_ids:
        checksum = 0
        for part in memory.parts([block_id]):
            checksum = zlib.crc32(part, checksum)
        checksums.append(checksum)
    return checksums
