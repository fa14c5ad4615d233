"""Program: NVIDIA Dynamo's router index (`RadixTree` of its runtime) as a `Side`, run by Dynamo's own interpreter.

Its events carry a hash of each block's tokens and one of the sequence up to the block; a prompt is asked for by the
former. Both are here the first eight bytes of Diptych's block hash, which names both. Events are JSON, as its Python
interface takes them.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

from dynamo._core import RadixTree

from harness.prefix_load import Run
from harness.prefix_side import run


class DynamoIndex:
    """A `Side`."""

    def __init__(self) -> None:
        self._tree = RadixTree()

    def encode(self, worker: int, runs: Sequence[Run]) -> list[bytes]:
        """Return a stored event for each run."""
        del worker
        return [
            json.dumps({"event_id": number, "data": {"stored": _stored(one)}}).encode()
            for number, one in enumerate(runs)
        ]

    def apply(self, worker: int, events: list[bytes]) -> None:
        """Decode and take over."""
        for event in events:
            self._tree.apply_event(worker, event)

    def prompt(self, hashes: Sequence[bytes]) -> list[int]:
        """Return the hashes of its blocks' tokens."""
        return [_number(one) for one in hashes]

    def match(self, prompt: list[int]) -> Any:
        """Ask; the scores stay on Dynamo's side until `answer` reads them."""
        return self._tree.find_matches(prompt)

    def answer(self, matched: Any) -> dict[int, int]:
        """Return the scores, by worker."""
        return {worker if isinstance(worker, int) else worker[0]: count for worker, count in matched.scores.items()}

    def remove(self, worker: int) -> list[float]:
        """Take a worker out."""
        begin_s = time.perf_counter()
        self._tree.remove_worker(worker)
        return [time.perf_counter() - begin_s]

    def facts(self) -> dict[str, Any]:
        """Return nothing more."""
        return {}


def _stored(one: Run) -> dict[str, Any]:
    numbers = [_number(block_hash) for block_hash in one.hashes]
    return {
        "parent_hash": None if one.parent is None else _number(one.parent),
        "blocks": [{"block_hash": number, "tokens_hash": number} for number in numbers],
    }


def _number(block_hash: bytes) -> int:
    return int.from_bytes(block_hash[:8], "big")


if __name__ == "__main__":
    run(DynamoIndex())
