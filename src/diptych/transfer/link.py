"""The sending end of transfers: one link to each worker of another node that blocks are sent to.

A link has a thread and a queue. The worker's loop puts transfers in and looks later whether they are over; it never
waits. What fails is tried again: by another way if the transport has failed, over a new connection if that has broken.

    queued --> running --> over (done, or with an error)
       --cancel--> over    --cancel: the connection is cut--> over

Invariants: transfers of a link end in the order in which they were put in; once one is over, its link touches none of
its blocks. (A receiver may still be reading them, of a sender that has hung up: what it reads then is never counted on,
since nobody has told it `Filled`.)
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from diptych.core.errors import TransferError, TransferRefusedError
from diptych.transfer.base import INLINE, Transport
from diptych.transfer.frames import MAX_PUSH_BLOCKS, Done, Failed, Fetch, Push
from diptych.transfer.handshake import Identity, greet
from diptych.transfer.memory import BlockMemory, BlockPair
from diptych.transfer.receiver import checksums_of
from diptych.transfer.tcp import Connection

NUM_TRIES = 2
ANSWER_TIMEOUT_S = 10.0
"""For a transport to take one order's blocks: 64 blocks, mostly some 50 MB."""
REST_S = 30.0
"""How long blocks go inline after their transport has failed, or could not be agreed on."""
UNREACHABLE_S = 5.0
"""How long a receiver that could not be connected to is left alone."""
SMOOTHING = 0.2
log = logging.getLogger(__name__)


class Transfer:
    """Blocks on their way, out (`is_fetch`: in). The loop reads it; its link's thread writes it."""

    def __init__(self, link: "Link", epoch: int, pairs: Sequence[BlockPair], *, is_fetch: bool) -> None:
        """`pairs`: at most `MAX_PUSH_BLOCKS`."""
        self.epoch = epoch
        self.pairs = list(pairs)
        self.is_fetch = is_fetch
        self.is_cancelled = False
        self.is_over = False
        self.error: str | None = None
        """Why its blocks do not count, once it is over; None: they do."""
        self._link = link

    def cancel(self) -> None:
        """Stop: nobody wants it any more. It is over now or soon, in most cases with an error."""
        self.is_cancelled = True
        self._link.interrupt(self)


class Link:
    """Transfers to and from one life of a worker of another node. Owned by the worker's loop."""

    def __init__(  # noqa: PLR0913  the parts that it is made of
        self,
        endpoint: str,
        identity: Identity,
        memory: BlockMemory,
        transports: Mapping[str, Transport],
        on_change: Callable[[], None],
        *,
        has_checksums: bool = False,
    ) -> None:
        """`endpoint`: of the receiver; `on_change` is called, by the link's thread, when a transfer is over."""
        self.endpoint = endpoint
        self.byte_s = 0.0
        """How long a byte took of late; 0.0 before the first transfer."""
        self._identity = identity
        self._memory = memory
        self._transports = transports
        self._on_change = on_change
        self._has_checksums = has_checksums
        self._queue: queue.SimpleQueue[Transfer | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._running: Transfer | None = None
        self._connection: Connection | None = None
        self._transport = INLINE
        self._life = 0
        """Of the transport, as the receiver knows it."""
        self._greeted_s = 0.0
        self._inline_until_s = 0.0
        self._unreachable_until_s = 0.0
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="kv-link", daemon=True)
        self._thread.start()

    @property
    def is_unreachable(self) -> bool:
        """Whether the receiver could not be connected to of late, and is not tried again yet."""
        return time.monotonic() < self._unreachable_until_s

    @property
    def is_inline(self) -> bool:
        """Whether blocks go inline now, as far as is known: then they arrive as they were, or not at all."""
        is_resting = time.monotonic() < self._inline_until_s
        return not self._transports or (self._greeted_s > 0 and (self._transport not in self._transports or is_resting))

    def push(self, epoch: int, pairs: Sequence[BlockPair]) -> Transfer:
        """Have blocks of the peer filled, under an epoch of its, with what those here hold from now to the end."""
        return self._put(Transfer(self, epoch, pairs, is_fetch=False))

    def fetch(self, epoch: int, pairs: Sequence[BlockPair]) -> Transfer:
        """Fill blocks here, which nobody else touches until the end, with what those of the peer hold."""
        return self._put(Transfer(self, epoch, pairs, is_fetch=True))

    def _put(self, transfer: Transfer) -> Transfer:
        assert 0 < len(transfer.pairs) <= MAX_PUSH_BLOCKS
        self._queue.put(transfer)
        return transfer

    def interrupt(self, transfer: Transfer) -> None:
        """Cut the connection if that transfer is the one that runs."""
        with self._lock:
            if self._running is transfer and self._connection is not None:
                self._connection.shutdown()

    def close(self) -> None:
        """Cut the connection and end the thread soon; transfers that wait end with an error."""
        with self._lock:
            self._is_closing = True
            if self._connection is not None:
                self._connection.shutdown()
        self._queue.put(None)

    # Its thread

    def _run(self) -> None:
        while (transfer := self._queue.get()) is not None:
            with self._lock:
                self._running = transfer
            transfer.error = self._carry_out(transfer)
            with self._lock:
                self._running = None
            transfer.is_over = True
            self._on_change()
        self._hang_up()

    def _carry_out(self, transfer: Transfer) -> str | None:
        """Do it, again if need be; return why it has failed."""
        error: TransferError = TransferError("it was cancelled")
        for _ in range(NUM_TRIES):
            if transfer.is_cancelled or self._is_closing:
                break
            begin_s = time.monotonic()
            try:
                self._try(transfer)
            except TransferRefusedError as refusal:
                return str(refusal)
            except TransferError as failure:
                self._hang_up()
                error = failure
                continue
            self._note_speed(transfer, time.monotonic() - begin_s)
            return None
        return str(error)

    def _try(self, transfer: Transfer) -> None:
        if self._connection is not None and self._is_outdated():
            self._hang_up()
        connection = self._connection or self._connect()
        if transfer.is_cancelled:
            raise TransferError("it was cancelled")
        if transfer.is_fetch:
            self._fetch(connection, transfer)
        else:
            self._push(connection, transfer)

    def _is_outdated(self) -> bool:
        """Tell whether the receiver is to be greeted anew: the transport is another one, or may be there again."""
        transport = self._transports.get(self._transport)
        if transport is None:
            return bool(self._transports) and time.monotonic() > self._greeted_s + REST_S
        return transport.life != self._life

    def _connect(self) -> Connection:
        if self.is_unreachable:
            raise TransferRefusedError(f"{self.endpoint} cannot be reached")
        try:
            connection = Connection.open(self.endpoint)
        except TransferError:
            self._unreachable_until_s = time.monotonic() + UNREACHABLE_S
            raise
        lives = {name: transport.life for name, transport in self._transports.items()}
        try:
            self._transport = greet(
                connection, self._identity, num_blocks=self._memory.num_blocks, transports=self._descriptions()
            )
        except TransferError:
            connection.close()
            raise
        self._life, self._greeted_s = lives.get(self._transport, 0), time.monotonic()
        with self._lock:
            self._connection = connection
        return connection

    def _descriptions(self) -> dict[str, bytes]:
        """Return what each transport says of itself that can be used now."""
        descriptions: dict[str, bytes] = {}
        for name, transport in self._transports.items():
            try:
                descriptions[name] = transport.describe()
            except TransferError as error:
                log.info("%s is not offered to %s: %s", name, self.endpoint, error)
        return descriptions

    def _hang_up(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _push(self, connection: Connection, transfer: Transfer) -> None:
        sources = [pair.here for pair in transfer.pairs]
        is_inline = self.is_inline
        order = Push(
            epoch=transfer.epoch,
            sources=sources,
            targets=[pair.there for pair in transfer.pairs],
            is_inline=is_inline,
            checksums=checksums_of(self._memory, sources) if self._has_checksums else None,
        )
        connection.send(order)
        if not is_inline:
            try:
                self._await_reader(connection, self._transports[self._transport])
                self._expect_done(connection)
            except TransferRefusedError:
                raise
            except TransferError:
                if not transfer.is_cancelled:
                    self._inline_until_s = time.monotonic() + REST_S
                    log.warning("%s rests, blocks go inline to %s for %.0f s", self._transport, self.endpoint, REST_S)
                raise
        else:
            connection.send_parts(self._memory.parts(sources))
            self._expect_done(connection)

    def _await_reader(self, connection: Connection, transport: Transport) -> None:
        """Let the peer read until it says something. Raises: TransferError if that takes too long."""
        with transport.serving():
            if not connection.wait(ANSWER_TIMEOUT_S):
                raise TransferError(f"{transport.name} has not taken the blocks within {ANSWER_TIMEOUT_S:.0f} s")

    def _fetch(self, connection: Connection, transfer: Transfer) -> None:
        connection.send(Fetch(epoch=transfer.epoch, blocks=[pair.there for pair in transfer.pairs]))
        self._expect_done(connection)
        targets = self._memory.parts([pair.here for pair in transfer.pairs])
        connection.receive_parts(targets, may_go_on=lambda: not transfer.is_cancelled)

    def _expect_done(self, connection: Connection) -> None:
        answer = connection.receive()
        if not isinstance(answer, Done):
            _raise(answer)

    def _note_speed(self, transfer: Transfer, duration_s: float) -> None:
        byte_s = duration_s / (len(transfer.pairs) * self._memory.layout.block_bytes)
        self.byte_s += (SMOOTHING if self.byte_s else 1.0) * (byte_s - self.byte_s)


def _raise(answer: object) -> None:
    if isinstance(answer, Failed):
        error = TransferRefusedError if answer.is_refused else TransferError
        raise error(answer.reason)
    raise TransferError(f"the receiver answers {type(answer).__name__}")
