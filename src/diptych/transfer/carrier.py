"""A transport whose library works in a process of its own, a carrier (carrier_process.py): seen from the worker.

    up  --a read that does not end, a crash, a loss: killed, reaped-->  down  --RESTART_S-->  up

Invariant: a read returns, or raises, only when the carrier has said that nothing moves any more, or has been reaped.
"""

import contextlib
import itertools
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from queue import Empty, SimpleQueue

import msgspec

from diptych.core.errors import TransferError
from diptych.transfer.carrier_orders import (
    MAX_PACKET_BYTES,
    AnyAnswer,
    AnyOrder,
    Begin,
    Ended,
    Lost,
    Meet,
    Met,
    Opened,
    Part,
    Read,
    Run,
    Serve,
    Unfit,
)
from diptych.transfer.memory import BlockMemory, BlockPair

MODULE = "diptych.transfer.carrier_process"
STDERR = 2
START_TIMEOUT_S = 20.0
MEET_TIMEOUT_S = 3.0
READ_TIMEOUT_S = 8.0
"""Of one order's blocks; less than its sender waits, so that it may send them by another way (link.py)."""
RESTART_S = 10.0
"""How long a carrier is down that has ended: what it died of may be there still."""
CLOSE_TIMEOUT_S = 2.0
log = logging.getLogger(__name__)
_decoder: "msgspec.msgpack.Decoder[AnyAnswer]" = msgspec.msgpack.Decoder(AnyAnswer)


class Carrier:
    """See `Transport`. Its library reads, from the start to `close`, with pauses after its process has ended."""

    def __init__(self, name: str, begin: Begin, memory: BlockMemory, held: Sequence[int] = ()) -> None:
        """Start the process. `held`: descriptors that it holds open too, for who waits for the end of all holders.

        Raises: TransferError if the library cannot be used here.
        """
        self.name = name
        self.life = 1
        self._begin = begin
        self._memory = memory
        self._held = held
        self._is_closing = threading.Event()
        self._process: _Process | None = _Process(begin, memory.descriptor, held)
        self._keeper = threading.Thread(target=self._keep, args=(self._process,), name="kv-carrier", daemon=True)
        self._keeper.start()

    def describe(self) -> bytes:
        """Return what a peer needs in order to read from this process's blocks. Raises: TransferError if it is down."""
        return self._up().description

    def connect(self, description: bytes, num_blocks: int) -> "CarrierSource":
        """Prepare to read from a peer of so many blocks. Raises: TransferError."""
        process = self._up()
        answer = process.ask(Meet(call=process.new_call(), description=description), MEET_TIMEOUT_S)
        assert isinstance(answer, Met)
        return CarrierSource(process, answer.peer, self._memory, num_blocks)

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Let peers read from here for as long as this lasts."""
        process = self._process
        if process is not None:
            process.tell(Serve(is_wanted=True))
        try:
            yield
        finally:
            if process is not None:
                process.tell(Serve(is_wanted=False))

    def close(self) -> None:
        """End the process: nothing of the worker's memory is read or written by it any more."""
        self._is_closing.set()
        if self._process is not None:
            self._process.end("it is closed")
        self._keeper.join(CLOSE_TIMEOUT_S)

    def _up(self) -> "_Process":
        if self._process is None:
            raise TransferError(f"{self.name} is down, and tried again soon")
        return self._process

    def _keep(self, process: "_Process | None") -> None:
        """Bury each process and start the next, on a thread."""
        while True:
            if process is not None:
                reason = process.listen()
                self._process = None
                if not self._is_closing.is_set():
                    log.warning("%s is down for %.0f s: %s", self.name, RESTART_S, reason)
            if self._is_closing.wait(RESTART_S):
                return
            process = self._try_start()

    def _try_start(self) -> "_Process | None":
        try:
            process = _Process(self._begin, self._memory.descriptor, self._held)
        except TransferError as error:
            log.warning("%s stays down: %s", self.name, error)
            return None
        self.life += 1
        self._process = process
        if self._is_closing.is_set():
            process.end("it is closed")
        return process


class CarrierSource:
    """A peer's blocks, as one process of a carrier reads them; of no use any more when that has ended."""

    def __init__(self, process: "_Process", peer: int, here: BlockMemory, num_blocks: int) -> None:
        self._process = process
        self._peer = peer
        self._here = here
        self._num_blocks = num_blocks

    def read(self, pairs: Sequence[BlockPair]) -> None:
        """Fill blocks here from those there; see `Source`."""
        layout, num_here, num_there = self._here.layout, self._here.num_blocks, self._num_blocks
        runs = [
            Run(target, source, num_bytes)
            for pair in pairs
            for (target, num_bytes), (source, _) in zip(
                layout.block_spans(pair.here, num_here), layout.block_spans(pair.there, num_there), strict=True
            )
        ]
        self._process.ask(Read(call=self._process.new_call(), peer=self._peer, runs=runs), READ_TIMEOUT_S)

    def close(self) -> None:
        """Forget the peer."""
        self._process.tell(Part(peer=self._peer))


class _Process:
    """One process of a carrier, from its start until it has been reaped. `listen` is for one thread, else for any."""

    def __init__(self, begin: Begin, memory_descriptor: int, held: Sequence[int]) -> None:
        """Raises: TransferError if it does not come up."""
        self._calls = itertools.count()
        self._lock = threading.Lock()
        self._waiting: dict[int, SimpleQueue[Met | Ended]] = {}
        self._reason: str | None = None
        self._is_over = False
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_PACKET_BYTES)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", MODULE, str(theirs.fileno()), str(memory_descriptor)],
                stdin=subprocess.DEVNULL,
                stdout=STDERR,  # libraries print there
                pass_fds=(theirs.fileno(), memory_descriptor, *held),
            )
        except OSError as error:
            self._socket.close()
            raise TransferError(f"a carrier cannot be started: {error.strerror}") from None
        finally:
            theirs.close()
        self.description = self._open(begin)
        """How peers reach it."""

    def _open(self, begin: Begin) -> bytes:
        self.tell(begin)
        self._socket.settimeout(START_TIMEOUT_S)
        answer = self._receive()
        self._socket.settimeout(None)
        if isinstance(answer, Opened):
            return answer.description
        self._bury()
        reason = answer.reason if isinstance(answer, Unfit) else "its library does not start"
        raise TransferError(reason)

    def new_call(self) -> int:
        """Return a number that no order had."""
        return next(self._calls)

    def ask(self, order: Meet | Read, timeout_s: float) -> Met | Ended:
        """Return the answer to an order; none in time ends the process.

        Raises: TransferError; nothing that was ordered moves any more.
        """
        box: SimpleQueue[Met | Ended] = SimpleQueue()
        with self._lock:
            if self._is_over:
                raise TransferError(str(self._reason))
            self._waiting[order.call] = box
        self.tell(order)
        try:
            answer = box.get(timeout=timeout_s)
        except Empty:
            self.end(f"nothing has come from a peer within {timeout_s:.0f} s")
            answer = box.get()  # what `listen` says when it has been reaped, which takes as long as the kernel needs
        if isinstance(answer, Ended) and answer.error is not None:
            raise TransferError(answer.error)
        return answer

    def tell(self, order: AnyOrder) -> None:
        """Give an order that needs no answer; a process that is over, or takes none, is noticed by `listen`."""
        packet = msgspec.msgpack.encode(order)
        with self._lock:
            if self._is_over:
                return
            try:
                self._socket.send(packet, socket.MSG_DONTWAIT)
            except BrokenPipeError:
                return
            except OSError as error:
                self.end(f"it takes no orders: {error.strerror}")

    def end(self, reason: str) -> None:
        """Kill it; `listen` then reaps it."""
        self._reason = self._reason or reason
        self._process.kill()

    def listen(self) -> str:
        """Hand on its answers until it has ended and been reaped; return why it has."""
        while (answer := self._receive()) is not None:
            if isinstance(answer, Met | Ended):
                with self._lock:
                    box = self._waiting.pop(answer.call, None)
                if box is not None:
                    box.put(answer)
            elif isinstance(answer, Lost):
                self._reason = self._reason or answer.reason
                break
        self._bury()
        return str(self._reason)

    def _receive(self) -> AnyAnswer | None:
        try:
            packet = self._socket.recv(MAX_PACKET_BYTES)
        except OSError:  # in `_open`, that the time is over
            return None
        return _decoder.decode(packet) if packet else None

    def _bury(self) -> None:
        """Kill it, wait until it is dead, and tell all that wait that nothing moves any more."""
        self._process.kill()
        status = self._process.wait()
        with self._lock:
            self._is_over = True
            self._reason = self._reason or f"its process has ended (exit status {status})"
            waiting, self._waiting = self._waiting, {}
            self._socket.close()
        for call, box in waiting.items():
            box.put(Ended(call=call, error=self._reason))
