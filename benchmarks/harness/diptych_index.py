"""Program: Diptych's own index as a `Side`, fed with the frames that workers send."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

from diptych.core.bounds import MAX_SNAPSHOT_PIECE_BLOCKS
from diptych.core.clock import SystemClock
from diptych.core.ids import BlockHash, WorkerId
from diptych.core.messages import CacheChange, CacheSnapshot, Message, PeerAddress, Tokens, ToRouter
from diptych.router.cache_feed import CacheFeed
from diptych.router.prefix_index import PrefixIndex
from diptych.wire.dropped import DroppedMessages
from diptych.wire.frame import FrameDecoder, encode_frame
from harness.prefix_load import Run
from harness.prefix_side import run

NUM_CHANGES = 100_000
"""Of one block stored and one removed, as decode steps make them."""


class _NoLetters:
    def send(self, endpoint: str, message: Message) -> None:
        """Drop it: everything is told without asking."""

    def forget(self, peer: PeerAddress) -> None:
        """Nothing is queued."""


class DiptychIndex:
    """A `Side`."""

    def __init__(self) -> None:
        self._index = PrefixIndex()
        self._feed = CacheFeed(self._index, _NoLetters(), SystemClock())
        self._decoder: FrameDecoder[Any] = FrameDecoder(ToRouter, DroppedMessages("router"))

    def encode(self, worker: int, runs: Sequence[Run]) -> list[bytes]:
        """Return the frames of a first change, which shows a gap, and of the snapshot that follows."""
        worker_id = WorkerId(f"decode-{worker}")
        hashes = [BlockHash(one) for run in runs for one in run.hashes]
        size = MAX_SNAPSHOT_PIECE_BLOCKS
        pieces = [hashes[at : at + size] for at in range(0, len(hashes), size)]
        gap = CacheChange(sequence=2, stored=[], removed=[])
        messages: list[Message] = [Tokens(worker_id=worker_id, incarnation=1, cache_change=gap)]
        messages += [
            CacheSnapshot(
                worker_id=worker_id,
                incarnation=1,
                snapshot=1,
                sequence=2,
                piece=number,
                num_pieces=len(pieces),
                stored=stored,
            )
            for number, stored in enumerate(pieces)
        ]
        return [encode_frame(message) for message in messages]

    def apply(self, worker: int, events: list[bytes]) -> None:
        """Decode and take over."""
        del worker
        for frame in events:
            match self._decoder.try_decode(frame):
                case Tokens(worker_id=worker_id, incarnation=incarnation, cache_change=change) if change is not None:
                    self._feed.on_change(worker_id, incarnation, change)
                case CacheSnapshot() as piece:
                    self._feed.on_snapshot(piece)

    def prompt(self, hashes: Sequence[bytes]) -> list[BlockHash]:
        """Return it as it is."""
        return [BlockHash(one) for one in hashes]

    def match(self, prompt: list[BlockHash]) -> dict[WorkerId, int]:
        """Ask."""
        return self._index.match_blocks(prompt)

    def answer(self, matched: dict[WorkerId, int]) -> dict[int, int]:
        """Return it by number."""
        return {int(worker_id.rpartition("-")[2]): count for worker_id, count in matched.items()}

    def remove(self, worker: int) -> list[float]:
        """Take a worker out, then tidy up to the end, a slice after the other."""
        begin_s = time.perf_counter()
        self._feed.on_worker_gone(WorkerId(f"decode-{worker}"), 1)
        steps_s = [time.perf_counter() - begin_s]
        is_more = True
        while is_more:
            begin_s = time.perf_counter()
            is_more = self._index.tidy()
            steps_s.append(time.perf_counter() - begin_s)
        return steps_s

    def facts(self) -> dict[str, Any]:
        """Return how many distinct blocks there are, and how long small changes take."""
        num_distinct = sum(map(len, self._index._shards))
        return {"num_distinct_blocks": num_distinct, "change_s": self._change_s(), "worst_match_s": _worst_match_s()}

    def _change_s(self) -> float:
        """Return how long a change of two blocks takes, decoding included."""
        worker_id = WorkerId("decode-new")
        names = [BlockHash(number.to_bytes(16, "big")) for number in range(NUM_CHANGES + 1)]
        changes = [
            CacheChange(sequence=number, stored=[names[number]], removed=[names[number - 1]])
            for number in range(1, NUM_CHANGES + 1)
        ]
        frames = [encode_frame(Tokens(worker_id=worker_id, incarnation=1, cache_change=one)) for one in changes]
        begin_s = time.perf_counter()
        self.apply(0, frames)
        return (time.perf_counter() - begin_s) / NUM_CHANGES


def _worst_match_s() -> list[float]:
    """Return how long a prompt of 4,000 blocks takes of which each of 1,000 workers holds another part."""
    index = PrefixIndex()
    prompt = [BlockHash((number << 96).to_bytes(16, "big")) for number in range(1, 4_001)]
    for number in range(1_000):
        index.change(WorkerId(f"decode-{number}"), prompt[: 4 * number + 4])
    times_s = []
    for _ in range(20):
        begin_s = time.perf_counter()
        index.match_blocks(prompt)
        times_s.append(time.perf_counter() - begin_s)
    return times_s


if __name__ == "__main__":
    run(DiptychIndex())
