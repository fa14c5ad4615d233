"""Two machines in one process: memories that share nothing, and the real connections between them."""

import mmap
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from diptych.core.ids import BlockId, NodeId, WorkerId
from diptych.kv.layout import CacheTensor, KVLayout
from diptych.transfer.base import Transport
from diptych.transfer.carrier import Carrier
from diptych.transfer.carrier_orders import Begin
from diptych.transfer.exchange import Exchange
from diptych.transfer.frames import Facts
from diptych.transfer.handshake import TRANSFER_PROTOCOL, Identity
from diptych.transfer.link import Transfer
from diptych.transfer.memory import BlockMemory, BlockPair
from diptych.transfer.transports import open_transports

SECRET = bytes(range(32))
PATIENCE_S = 30.0
WHOLE = KVLayout.of([CacheTensor(f"layer {number}", (2, 32, 64), "bf16") for number in range(6)], 32)
"""A block is one run of bytes, of 49,152."""
IN_PARTS = KVLayout.of([CacheTensor("keys", (2, 32, 64), "u8"), CacheTensor("values", (2, 32, 72), "u8")], 32)
"""A block is two runs of bytes, far from each other."""


def facts_of(layout: KVLayout, changes: Mapping[str, Any]) -> Facts:
    """Return what a worker says of itself."""
    facts: dict[str, Any] = {
        "protocol": TRANSFER_PROTOCOL,
        "diptych": "1.2.3",
        "engine": "openvino bf16 KV",
        "model_key": "a model",
        "layout": layout.fingerprint,
        "block_size": layout.block_size,
        "block_bytes": layout.block_bytes,
    }
    return Facts(**(facts | dict(changes)))


class Machine:
    """One worker with memory of its own. Use as a context."""

    def __init__(  # noqa: PLR0913  all but three by keyword
        self,
        name: str,
        num_blocks: int = 40,
        layout: KVLayout = WHOLE,
        *,
        ways: Sequence[str] = (),
        transports: Mapping[str, Transport] | None = None,
        carried: str | None = None,
        host: str = "127.0.0.1",
        secret: bytes = SECRET,
        has_checksums: bool = False,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """`carried`: how the scripted library behaves that a carrier uses, as the only transport."""
        self.layout = layout
        self.num_blocks = num_blocks
        self._descriptor = os.memfd_create("blocks")
        os.ftruncate(self._descriptor, num_blocks * layout.block_bytes)
        content = memoryview(mmap.mmap(self._descriptor, num_blocks * layout.block_bytes))
        self.content: npt.NDArray[np.uint8] = np.frombuffer(content, np.uint8)
        self.content[:] = np.random.default_rng(len(name)).integers(0, 256, len(self.content), np.uint8)
        self.memory = BlockMemory(content, layout, num_blocks, self._descriptor, 0)
        self.life = (WorkerId(name), 1)
        identity = Identity(*self.life, NodeId(name), facts_of(layout, facts or {}), secret)
        if carried is not None:
            transports = {"scripted": scripted_carrier(carried, self.memory)}
        opened = _open(ways, host, identity, self.memory) if transports is None else transports
        self.transports = dict(opened)
        self.exchange = Exchange(
            host, identity, self.memory, opened, on_change=lambda: None, has_checksums=has_checksums
        )

    def __enter__(self) -> "Machine":
        return self

    def __exit__(self, *_: object) -> None:
        self.exchange.close()
        os.close(self._descriptor)

    @property
    def grants(self) -> Any:
        return self.exchange.receiver.grants

    def block(self, block_id: int) -> bytes:
        """Return what a block holds."""
        return b"".join(bytes(part) for part in self.memory.parts([BlockId(block_id)]))

    def all_pairs(self) -> list[BlockPair]:
        """Pair each block with the one of the same number."""
        return _pairs([(number, number) for number in range(self.num_blocks)])

    def grant(self, epoch: int, writer: "Machine", writable: Sequence[int], readable: Sequence[int] = ()) -> None:
        """Open a grant."""
        self.grants.open(epoch, writer.life, map(BlockId, writable), map(BlockId, readable))

    def push(self, to: "Machine", epoch: int, pairs: Sequence[tuple[int, int]]) -> Transfer:
        """Begin to push."""
        return self.exchange.link(to.exchange.receiver.endpoint).push(epoch, _pairs(pairs))

    def fetch(self, source: "Machine", epoch: int, pairs: Sequence[tuple[int, int]]) -> Transfer:
        """Begin to fetch."""
        return self.exchange.link(source.exchange.receiver.endpoint).fetch(epoch, _pairs(pairs))


def scripted_carrier(behaviour: str, memory: BlockMemory) -> Carrier:
    """Return a carrier of the scripted library. Raises: TransferError."""
    library = "tests.transfer.scripted_library:ScriptedLibrary"
    begin = Begin(library=library, host=behaviour, name="worker", offset=memory.offset, num_bytes=memory.num_bytes)
    return Carrier("scripted", begin, memory)


def _open(ways: Sequence[str], host: str, identity: Identity, memory: BlockMemory) -> Mapping[str, Transport]:
    """Open transports; where a library is not there the test says so, and in CI fails."""
    opened = open_transports(ways, host, identity, memory)
    missing = set(ways) - {*opened, "tcp"}
    if missing and "CI" not in os.environ:
        pytest.skip(f"{missing} cannot be used here; `make test` installs what pip can, .ci/run the rest")
    assert not missing
    return opened


def _pairs(pairs: Sequence[tuple[int, int]]) -> list[BlockPair]:
    return [BlockPair(BlockId(here), BlockId(there)) for here, there in pairs]


def wait_for(is_true: Callable[[], bool], timeout_s: float = PATIENCE_S) -> bool:
    """Tell whether something comes true in time."""
    give_up_s = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > give_up_s:
            return False
        time.sleep(0.001)
    return True


def outcome(transfer: Transfer) -> str | None:
    """Wait for the end of a transfer; return its error."""
    assert wait_for(lambda: transfer.is_over), "a transfer does not end"
    return transfer.error
