"""What many workers have in their prefix caches, and prompts to look up: made from a trace of real chats.

Each worker has served requests drawn from several copies of the trace (other users, the same system prompt), until its
cache was full. Standard library only: a peer's interpreter makes the very same load.
"""

import argparse
import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

BLOCKS_PER_NODE = 16
"""Blocks of 32 tokens in one of the trace's, of 512."""
HASH_BYTES = 16
ROOT = -1
NEW_CHATS = 4
"""One in so many prompts is the first of its chat: all that is known of it is the system prompt."""


class Node(NamedTuple):
    """A block of the trace: `number` within a copy of it."""

    copy: int
    number: int


class Run(NamedTuple):
    """Blocks that a worker stores at once: those of a request that it had not stored yet."""

    parent: bytes | None
    hashes: list[bytes]


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """How much of what."""

    trace: Path
    num_workers: int
    blocks_per_worker: int
    num_copies: int
    prompt_blocks: int
    num_prompts: int
    seed: int

    @classmethod
    def from_arguments(cls, arguments: Sequence[str] | None = None) -> "LoadSettings":
        """Read the settings as `arguments` has written them."""
        parser = argparse.ArgumentParser()
        parser.add_argument("trace", type=Path)
        for name in ("num_workers", "blocks_per_worker", "num_copies", "prompt_blocks", "num_prompts", "seed"):
            parser.add_argument(name, type=int)
        return cls(**vars(parser.parse_args(arguments)))

    def arguments(self) -> list[str]:
        """Return the settings as words of a command line."""
        sizes = (self.num_workers, self.blocks_per_worker, self.num_copies, self.prompt_blocks, self.num_prompts)
        return [str(self.trace), *map(str, sizes), str(self.seed)]


class PrefixLoad:
    """Deterministic: the same settings make the same caches and prompts."""

    def __init__(self, settings: LoadSettings) -> None:
        self.settings = settings
        self._requests: list[list[int]] = []
        """Of each request its nodes, from the root on. Equal nodes have equal nodes before them."""
        numbers: dict[tuple[int, int], int] = {}
        for line in settings.trace.read_text(encoding="utf-8").splitlines():
            path, parent = [], ROOT
            for name in json.loads(line)["hash_ids"]:
                parent = numbers.setdefault((parent, name), len(numbers))
                path.append(parent)
            self._requests.append(path)
        self._unknown = [
            hashlib.blake2b(b"%d" % i, digest_size=HASH_BYTES).digest() for i in range(settings.prompt_blocks)
        ]

    def runs(self, worker: int) -> Iterator[Run]:
        """Yield what a worker has stored, in order; each run follows its parent."""
        held: set[Node] = set()
        for path in self._paths(worker):
            new = [node for node in path if node not in held]
            held.update(new)
            if new:
                at = len(path) - len(new)
                parent = hashes_of(path[at - 1])[-1] if at else None
                yield Run(parent, [one for node in new for one in hashes_of(node)])

    def prompts(self) -> Iterator[tuple[list[Node], list[bytes]]]:
        """Yield prompts: a chat that some worker holds goes on, or a new one begins; the rest no worker knows."""
        chance = random.Random(f"prompts {self.settings.seed}")
        for number in range(self.settings.num_prompts):
            path = chance.choice(list(self._paths(chance.randrange(self.settings.num_workers))))
            path = path[: 1 if number % NEW_CHATS == 0 else self.settings.prompt_blocks // BLOCKS_PER_NODE]
            known = [one for node in path for one in hashes_of(node)]
            yield path, known + self._unknown[len(known) :]

    def expected(self, paths: Sequence[Sequence[Node]]) -> list[dict[int, int]]:
        """Return for each of these prompts' known parts how many blocks of it each worker holds."""
        found: list[dict[int, int]] = [{} for _ in paths]
        for worker in range(self.settings.num_workers):
            held = {node for path in self._paths(worker) for node in path}
            for path, by_worker in zip(paths, found, strict=True):
                count = next((i for i, node in enumerate(path) if node not in held), len(path))
                if count:
                    by_worker[worker] = count * BLOCKS_PER_NODE
        return found

    def _paths(self, worker: int) -> Iterator[list[Node]]:
        """Yield the requests that a worker has served; the last one is cut off where its cache is full."""
        chance = random.Random(f"worker {worker} {self.settings.seed}")
        room = self.settings.blocks_per_worker // BLOCKS_PER_NODE
        held: set[Node] = set()
        while len(held) < room:
            copy = chance.randrange(self.settings.num_copies)
            # The first node is the system prompt, which all copies have in common.
            path = [Node(copy if at else 0, number) for at, number in enumerate(chance.choice(self._requests))]
            num_new = sum(node not in held for node in path)
            path = path[: len(path) - max(num_new - (room - len(held)), 0)]
            held.update(path)
            yield path


def hashes_of(node: Node) -> list[bytes]:
    """Return the names of the blocks that a node of the trace stands for."""
    made = hashlib.shake_128(b"%d %d" % node).digest(BLOCKS_PER_NODE * HASH_BYTES)
    return [made[at : at + HASH_BYTES] for at in range(0, len(made), HASH_BYTES)]
