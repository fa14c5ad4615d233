"""Where a request goes: asks the policies over the registry and the prefix index, and keeps the ledgers.

Step 2 of a request's life. Invariant: what `Placement.assign` adds to ledgers, `Placement.release` takes away, whatever
happened in between.
"""

from collections.abc import Collection
from dataclasses import dataclass

from diptych.core.ids import BlockHash, RequestId
from diptych.core.messages import PeerAddress
from diptych.policy.routing import choose_decode_worker, choose_prefill_path
from diptych.router.prefix_index import PrefixIndex
from diptych.router.registry import WorkerLife, WorkerRegistry


@dataclass(frozen=True, slots=True)
class Placement:
    """The workers of one attempt at a request."""

    decode: WorkerLife
    prefill: WorkerLife | None
    """None: the decode worker reads the prompt itself."""
    num_uncached_tokens: int
    """Of the prompt, as far as the router knows; at least 1."""
    num_new_blocks: int
    """Blocks that the prompt takes besides those in the decode worker's prefix cache."""

    def assign(self, request_id: RequestId, num_choices: int = 1) -> None:
        """Count the request as load of its workers."""
        self.decode.ledger.sequences.assign(request_id, num_choices)
        self.decode.ledger.blocks.assign(request_id, self.num_new_blocks)
        (self.prefill or self.decode).ledger.prefill_tokens.assign(request_id, self.num_uncached_tokens)

    def on_block_full(self, request_id: RequestId) -> None:
        """Count one block more: the answer has outgrown the last one."""
        self.decode.ledger.blocks.grow(request_id, 1)

    def on_prefill_gone(self, request_id: RequestId) -> None:
        """Count the prompt as the decode worker's own: it reads it itself after its prefill worker's death."""
        self.decode.ledger.prefill_tokens.assign(request_id, self.num_uncached_tokens)

    def on_prefilled(self, request_id: RequestId) -> None:
        """Count the prompt as read."""
        self.decode.ledger.prefill_tokens.release(request_id)
        if self.prefill is not None:
            self.prefill.ledger.prefill_tokens.release(request_id)

    def release(self, request_id: RequestId) -> None:
        """Stop counting the request anywhere."""
        self.decode.ledger.release(request_id)
        if self.prefill is not None:
            self.prefill.ledger.release(request_id)


class Placer:
    """Turns a prompt into a placement. Keeps nothing of its own."""

    def __init__(
        self, registry: WorkerRegistry, prefixes: PrefixIndex, block_size: int, local_prefill_max_tokens: int
    ) -> None:
        self._registry = registry
        self._prefixes = prefixes
        self._block_size = block_size
        self._local_prefill_max_tokens = local_prefill_max_tokens

    def try_place(
        self, num_prompt_tokens: int, hashes: list[BlockHash], excluded: Collection[PeerAddress]
    ) -> Placement | None:
        """Choose workers for a prompt; None if no worker outside `excluded` takes requests now."""
        loads = {
            load.worker_id: load
            for load in self._registry.decode_loads(self._block_size)
            if self._registry.life(load.worker_id).address not in excluded
        }
        num_prompt_blocks = -(-num_prompt_tokens // self._block_size)
        matched_blocks = self._prefixes.match_blocks(hashes)
        decode_id = choose_decode_worker(num_prompt_blocks, matched_blocks, loads.values())
        if decode_id is None:
            return None
        num_matched_blocks = matched_blocks.get(decode_id, 0)
        # The last prompt token is always computed: its logits are the first token.
        num_uncached_tokens = max(num_prompt_tokens - num_matched_blocks * self._block_size, 1)
        prefill_id = choose_prefill_path(
            num_uncached_tokens, loads[decode_id], self._registry.prefill_loads(), self._local_prefill_max_tokens
        )
        return Placement(
            decode=self._registry.life(decode_id),
            prefill=None if prefill_id is None else self._registry.life(prefill_id),
            num_uncached_tokens=num_uncached_tokens,
            num_new_blocks=num_prompt_blocks - num_matched_blocks,
        )
