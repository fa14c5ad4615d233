"""The header between real processes: one writes, another reads, and the writer may be killed."""

import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diptych.core.ids import BlockHash, BlockId, RequestId, WorkerId
from diptych.kv.header import BlockCommit, SegmentHeader, header_bytes, request_key

NUM_BLOCKS = 128
DEADLINE_S = 30.0

OPEN_SEGMENT = """
import mmap, sys, time
from diptych.core.ids import BlockHash, BlockId, RequestId, WorkerId
from diptych.kv.header import BlockCommit, SegmentHeader, request_key
file = open(sys.argv[1], "r+b")
header = SegmentHeader.open(memoryview(mmap.mmap(file.fileno(), 0)))
header.require("layout", "model")
owned = header.owned_blocks(WorkerId("decode-0"))
"""

COMMIT_ONCE = """
header.reserve(owned[:2], 7)
header.commit([BlockCommit(owned[1], BlockHash(b"h" * 16), request_key(RequestId("r"), 0.0, 2), 1, 32, 7, 3)])
"""

COMMIT_FOR_EVER = """
header.reserve(owned, 7)
end_s = time.monotonic() + 60
count = 0
while time.monotonic() < end_s:
    count = count % 60000 + 1
    key = count.to_bytes(16, "little")
    header.commit([BlockCommit(block_id, BlockHash(key), key, count, count, 7, count) for block_id in owned])
"""


@contextmanager
def segment(path: Path) -> Iterator[SegmentHeader]:
    path.write_bytes(bytes(header_bytes(NUM_BLOCKS)))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping, memoryview(mapping) as view:
        header = SegmentHeader.create(view, NUM_BLOCKS, 4096, "layout", "model")
        yield header
        header.close()


def start(script: str, path: Path) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", OPEN_SEGMENT + script, str(path)], env=environment)


def test_another_process_sees_leases_and_its_commits_are_seen(tmp_path: Path) -> None:
    with segment(tmp_path / "segment") as header:
        header.lease_extent(1, WorkerId("decode-0"), 0)
        with start(COMMIT_ONCE, tmp_path / "segment") as writer:
            assert writer.wait(DEADLINE_S) == 0
        expected = BlockCommit(BlockId(65), BlockHash(b"h" * 16), request_key(RequestId("r"), 0.0, 2), 1, 32, 7, 3)
        assert header.committed([BlockId(64), BlockId(65)]) == [None, expected]
        assert header.epochs_of([BlockId(63), BlockId(64), BlockId(65), BlockId(66)]).tolist() == [0, 7, 7, 0]


def test_every_block_of_a_killed_writer_has_a_whole_record(tmp_path: Path) -> None:
    with segment(tmp_path / "segment") as header:
        header.lease_extent(0, WorkerId("decode-0"), 0)
        owned = header.owned_blocks(WorkerId("decode-0"))
        with start(COMMIT_FOR_EVER, tmp_path / "segment") as writer:
            try:
                end_s = time.monotonic() + DEADLINE_S
                while None in header.committed(owned):
                    assert writer.poll() is None, "the writer ended by itself"
                    assert time.monotonic() < end_s, "the writer has committed nothing"
            finally:
                writer.send_signal(signal.SIGKILL)
        records = header.committed(owned)
        counts = set()
        for record in records:
            assert record is not None
            key = record.block_index.to_bytes(16, "little")
            fields = (record.num_tokens, record.writer, record.request_key, record.block_hash)
            assert fields == (record.block_index, record.block_index, key, key)
            counts.add(record.block_index)
        assert len(counts) <= 2, "blocks of one commit are of this step or of the one before"
        # A successor goes on where the writer stopped.
        header.lease_extent(0, WorkerId("decode-1"), 1)
        header.reserve(owned, 8)
        assert header.committed(owned) == [None] * len(owned)
