"""What decode reads is, byte for byte, what prefill wrote; and the check that says so finds a single changed bit."""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.live_server import LiveServer
from tests.parity.reference import BareEngine

from diptych.core.errors import DamagedBlockError
from diptych.core.ids import RequestId
from diptych.engine.base import Row
from diptych.kv.header import SegmentHeader, header_bytes
from diptych.transfer.segment import Segment
from diptych.worker.memory import StepPart, WorkerMemory

pytestmark = pytest.mark.slow


def test_a_server_that_compares_checksums_finds_none_that_differ(
    smol_server: LiveServer, prompts: list[list[int]]
) -> None:
    # That it would fail otherwise: tests/worker, in one process, with damaged blocks.
    shifted = [prompt[1:] for prompt in prompts if len(prompt) > 40]
    answers = smol_server.complete_all(shifted, max_tokens=2)
    assert {answer.num_cached_tokens for answer in answers} == {0}
    records = smol_server.records()[-len(shifted) :]
    assert {record["outcome"] for record in records} == {"length"}
    assert {record["prefill_worker"] for record in records} == {"prefill-0"}
    smol_server.wait_until_idle()


class OtherWorker:
    """The same segment, mapped a second time, as another process has it."""

    def __init__(self, bare_engine: BareEngine) -> None:
        self.segment = Segment(bare_engine.descriptor)
        self.layout = bare_engine.engine.layout
        self.num_blocks = bare_engine.num_blocks
        self.blocks = self.segment.view(0, self.segment.num_bytes)
        header_map = mmap.mmap(-1, header_bytes(self.num_blocks))
        header = SegmentHeader.create(
            memoryview(header_map), self.num_blocks, self.layout.block_bytes, self.layout.fingerprint, "key"
        )
        self.memory = WorkerMemory(header, self.blocks, self.layout, has_checksums=True)

    @contextmanager
    def bit_flipped(self, offset: int) -> Iterator[None]:
        self.blocks[offset] ^= 1
        yield
        self.blocks[offset] ^= 1


def test_a_single_bit_of_what_is_read_is_noticed(bare_engine: BareEngine, prompts: list[list[int]]) -> None:
    prompt, epoch = prompts[3], 9
    table, unused = bare_engine.block_tables([len(prompt), 1])
    other = OtherWorker(bare_engine)
    other.memory.header.reserve(table, epoch)
    num_past = len(prompt) - 1
    other.memory.run_step(bare_engine.engine, [StepPart(Row(prompt[:num_past], 0, table, 0), RequestId("r"), epoch)])
    last = [StepPart(Row(prompt[num_past:], num_past, table, 1), RequestId("r"), epoch)]
    damaged = 0
    for block_id in table[: other.layout.num_blocks_for(num_past)]:
        for begin, num_bytes in other.layout.block_spans(block_id, other.num_blocks):
            for offset in (begin, begin + num_bytes // 3, begin + num_bytes - 1):
                damaged += 1
                with other.bit_flipped(offset), pytest.raises(DamagedBlockError, match=f"KV block {block_id} does not"):
                    other.memory.run_step(bare_engine.engine, last)
    assert other.memory.num_damaged_blocks == damaged > 0
    with other.bit_flipped(other.layout.block_spans(unused[0], other.num_blocks)[0][0]):
        assert len(other.memory.run_step(bare_engine.engine, last)) == 1, "a block of others is none of its business"


def test_decode_reads_what_prefill_wrote(bare_engine: BareEngine, prompts: list[list[int]]) -> None:
    prompt = prompts[3]
    (table,) = bare_engine.block_tables([len(prompt) + 1])
    other = OtherWorker(bare_engine)

    def next_logits() -> list[float]:
        logits: list[float] = bare_engine.engine.step([Row([7], len(prompt), table, 1)])[0].tolist()
        return logits

    bare_engine.engine.step([Row(prompt, 0, table, 1)])
    undamaged = next_logits()
    assert next_logits() == undamaged
    begin, num_bytes = other.layout.block_spans(table[1], other.num_blocks)[0]
    kept = bytes(other.blocks[begin : begin + num_bytes])
    other.blocks[begin : begin + num_bytes] = bytes(num_bytes)
    assert next_logits() != undamaged, "decode does not read the block that was zeroed"
    other.blocks[begin : begin + num_bytes] = kept
    assert next_logits() == undamaged
