"""Transfers between machines in one process, which go on only when a test says so: real grants, memory and bytes.

What a transfer does to sender and receiver is as in transfer/link.py and transfer/receiver.py: it begins when its turn
comes and the receiver's grants let it, moves bytes, and ends; one that is cancelled while it is under way is over at
once for its sender, and may go on for a while at the receiver's end, unless the bytes come inline.
"""

from collections.abc import Sequence
from contextlib import ExitStack

from diptych.core.errors import TransferRefusedError
from diptych.core.ids import BlockId
from diptych.transfer.exchange import Exchange
from diptych.transfer.link import Link, Transfer
from diptych.transfer.memory import BlockPair
from diptych.transfer.open_grants import Life, OpenGrants
from diptych.transfer.receiver import Receiver
from diptych.worker.memory import WorkerMemory


class ScriptedReceiver(Receiver):
    """The grants of a worker, and its memory; nothing listens."""

    def __init__(self, endpoint: str, memory: WorkerMemory) -> None:
        self.grants = OpenGrants()
        self.endpoint = endpoint
        self.memory = memory


class Moving:
    """What a receiver is at: bytes move when the test says so, and it is over for the receiver only after that."""

    def __init__(
        self, receiver: ScriptedReceiver, sender: WorkerMemory, life: Life, transfer: "ScriptedTransfer"
    ) -> None:
        """Raises: TransferRefusedError."""
        grants, theirs = receiver.grants, [pair.there for pair in transfer.pairs]
        self.receiver = receiver
        self.targets = theirs
        self.epoch = transfer.epoch
        self.is_fetch = transfer.is_fetch
        self._stack = ExitStack()
        enter = grants.reading if transfer.is_fetch else grants.filling
        self._stack.enter_context(enter(transfer.epoch, life, theirs))
        self._sender = sender
        self._transfer = transfer

    def move(self) -> None:
        """Move the bytes, whoever still wants them, and let go of the grant."""
        is_inline = self._transfer.is_inline and not self.is_fetch
        pairs = self._transfer.pairs
        if is_inline and self._transfer.is_over:
            pairs = pairs[: len(pairs) // 2]  # what was sent before the connection was cut
        for here, there in pairs:
            if self._transfer.is_fetch:
                if not self._transfer.is_over:  # else its sender has hung up, and receives nothing
                    _copy(self.receiver.memory, there, self._sender, here)
            elif self.receiver.grants.is_open(self._transfer.epoch):
                _copy(self._sender, here, self.receiver.memory, there)
        if is_inline and len(pairs) == len(self.targets) and self.receiver.grants.is_open(self.epoch):
            self.receiver.grants.note_landed(self.epoch, self.targets)
        self._stack.close()


class ScriptedTransfer(Transfer):
    """A transfer whose end the test decides."""

    def __init__(self, link: "ScriptedLink", epoch: int, pairs: Sequence[BlockPair], *, is_fetch: bool) -> None:
        self.epoch = epoch
        self.pairs = list(pairs)
        self.is_fetch = is_fetch
        self.is_cancelled = self.is_over = False
        self.error: str | None = None
        self.is_inline = link.is_inline

    def cancel(self) -> None:
        self.end("it was cancelled")

    def end(self, error: str | None) -> None:
        if not self.is_over:
            self.is_over, self.error = True, error


class ScriptedLink(Link):
    """Transfers of one sender to one receiver, in order."""

    def __init__(self, exchange: "ScriptedExchange", endpoint: str) -> None:
        self.endpoint = endpoint
        self.byte_s = 0.0
        self.waiting: list[ScriptedTransfer] = []
        self.moving: Moving | None = None
        self.num_moved_blocks = 0
        self.is_down = False
        self._exchange = exchange

    @property
    def is_unreachable(self) -> bool:
        return self.is_down

    @property
    def is_inline(self) -> bool:
        return self._exchange.wires.is_inline

    def push(self, epoch: int, pairs: Sequence[BlockPair]) -> Transfer:
        return self._add(ScriptedTransfer(self, epoch, pairs, is_fetch=False))

    def fetch(self, epoch: int, pairs: Sequence[BlockPair]) -> Transfer:
        return self._add(ScriptedTransfer(self, epoch, pairs, is_fetch=True))

    def _add(self, transfer: ScriptedTransfer) -> Transfer:
        self.waiting.append(transfer)
        return transfer

    def close(self) -> None:
        for transfer in self.waiting:
            transfer.end("the link was closed")

    def hang_up(self) -> None:
        """Lose the peer."""
        self.moving = None
        for transfer in self.waiting:
            transfer.end("the peer has hung up")

    def advance(self, *, does_fail: bool) -> bool:
        """Begin the next transfer, or end the one that has begun; tell whether there was anything to do."""
        if self.moving is not None:
            self.moving.move()
            self.moving = None
            transfer = self.waiting.pop(0)
            transfer.end("a cable was pulled" if does_fail else None)
            self.num_moved_blocks += len(transfer.pairs) if transfer.error is None else 0
            return True
        while self.waiting and self.waiting[0].is_over:
            self.waiting.pop(0)
        if not self.waiting:
            return False
        self._begin(self.waiting[0])
        return True

    def _begin(self, transfer: ScriptedTransfer) -> None:
        receiver = self._exchange.wires.receivers.get(self.endpoint)
        if receiver is None:
            transfer.end("nobody listens there")
            return
        try:
            self.moving = Moving(receiver, self._exchange.memory, self._exchange.life, transfer)
        except TransferRefusedError as error:
            transfer.end(str(error))


class ScriptedExchange(Exchange):
    """One worker's end of all wires."""

    def __init__(self, wires: "Wires", life: Life, memory: WorkerMemory) -> None:
        self.wires = wires
        self.life = life
        self.memory = memory
        self.links: dict[str, ScriptedLink] = {}
        endpoint = f"{life[0]}-{life[1]}:1"
        self.receiver: ScriptedReceiver = ScriptedReceiver(endpoint, memory)
        wires.receivers[endpoint] = self.receiver
        wires.exchanges.append(self)

    def link(self, endpoint: str) -> Link:
        return self.links.setdefault(endpoint, ScriptedLink(self, endpoint))

    def forget(self, endpoint: str) -> None:
        if endpoint in self.links:
            self.links[endpoint].close()

    def close(self) -> None:
        """Die: nobody hears of this end any more, but what the other ends are at goes on until they notice."""
        self.wires.receivers.pop(self.receiver.endpoint)
        for link in self.links.values():
            link.close()
        for link in self.wires.links():
            if link.endpoint == self.receiver.endpoint:
                link.hang_up()


class Wires:
    """All connections between the machines of a test."""

    def __init__(self, *, is_inline: bool) -> None:
        self.is_inline = is_inline
        self.receivers: dict[str, ScriptedReceiver] = {}
        self.exchanges: list[ScriptedExchange] = []

    def links(self) -> list[ScriptedLink]:
        """Return all that have ever been."""
        return [link for exchange in self.exchanges for link in exchange.links.values()]

    def advance(self, pick: int = 0, *, does_fail: bool = False) -> bool:
        """Let something happen on one of the links; tell whether there was anything to do."""
        links = self.links()
        turns = links[pick % len(links) :] + links[: pick % len(links)] if links else []
        return any(link.advance(does_fail=does_fail) for link in turns)


def _copy(source: WorkerMemory, source_id: BlockId, target: WorkerMemory, target_id: BlockId) -> None:
    for here, there in zip(source.parts(source_id), target.parts(target_id), strict=True):
        there[:] = here
