"""A transport between threads of one process, which can be slow, fail, or bring something else than was sent."""

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from tests.transfer.machines import PATIENCE_S

from diptych.core.errors import TransferError
from diptych.transfer.memory import BlockMemory, BlockPair

MEMORIES: dict[bytes, BlockMemory] = {}


class ScriptedTransport:
    """Copies at once, unless the test says otherwise."""

    name = "scripted"
    life = 1

    def __init__(self) -> None:
        self.memory: BlockMemory | None = None
        self.may_read = threading.Event()
        self.may_read.set()
        self.is_reading = threading.Event()
        self.is_broken = False
        self.damages = False
        self.num_reads = 0

    def own(self, memory: BlockMemory) -> None:
        """Register the memory of this end."""
        self.memory = memory
        MEMORIES[self.describe()] = memory

    def describe(self) -> bytes:
        return str(id(self)).encode()

    def connect(self, description: bytes, num_blocks: int) -> "ScriptedTransport":
        if description not in MEMORIES:
            raise TransferError("nobody is called that")
        self.there = MEMORIES[description]
        return self

    def read(self, pairs: Sequence[BlockPair]) -> None:
        self.num_reads += 1
        self.is_reading.set()
        assert self.may_read.wait(PATIENCE_S)
        if self.is_broken:
            raise TransferError("a card has burnt")
        assert self.memory is not None
        for pair in pairs:
            for here, there in zip(self.memory.parts([pair.here]), self.there.parts([pair.there]), strict=True):
                here[:] = there
                here[0] ^= self.damages

    def serving(self) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        pass
