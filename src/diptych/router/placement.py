"""Where a request goes: asks the policies over the registry and the prefix index, and keeps the ledgers.

Step 2 of a request's life. Invariant: what `Placement.assign` adds to ledgers, `Placement.release` takes away, whatever
happened in between.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from diptych.core.ids import BlockHash, RequestId, WorkerId
from diptych.core.messages import PeerAddress
from diptych.core.slo import Slo
from diptych.policy.pairing import Pair, choose_pair
from diptych.policy.routing import choose_decode_worker, choose_prefill_path
from diptych.router.prefix_index import PrefixIndex
from diptych.router.registry import WorkerLife, WorkerRegistry
from diptych.router.settings import RouterSettings


@dataclass(frozen=True, slots=True)
class Placement:
    """The workers of one attempt at a request."""

    decode: WorkerLife
    prefill: WorkerLife | None
    """None: the decode worker reads the prompt itself."""
    num_prompt_tokens: int
    num_uncached_tokens: int
    """Of the prompt, as far as the router knows; at least 1."""
    num_new_blocks: int
    """Blocks that the prompt takes besides those in the decode worker's prefix cache."""
    forecast: Pair | None = None
    """What was predicted; None where nothing was."""

    def assign(self, request_id: RequestId, num_choices: int = 1) -> None:
        """Count the request as load of its workers."""
        self.decode.ledger.sequences.assign(request_id, num_choices)
        self.decode.ledger.unread.assign(request_id, num_choices)
        self.decode.ledger.blocks.assign(request_id, self.num_new_blocks)
        self.decode.ledger.context_tokens.assign(request_id, num_choices * self.num_prompt_tokens)
        (self.prefill or self.decode).ledger.prefill_tokens.assign(request_id, self.num_uncached_tokens)

    def on_block_full(self, request_id: RequestId, block_size: int) -> None:
        """Count one block more: the answer has outgrown the last one."""
        self.decode.ledger.blocks.grow(request_id, 1)
        self.decode.ledger.context_tokens.grow(request_id, block_size)

    def on_prefill_gone(self, request_id: RequestId) -> None:
        """Count the prompt as the decode worker's own: it reads it itself after its prefill worker's death."""
        self.decode.ledger.prefill_tokens.assign(request_id, self.num_uncached_tokens)

    def on_prefilled(self, request_id: RequestId) -> None:
        """Count the prompt as read."""
        self.decode.ledger.unread.release(request_id)
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
        self, registry: WorkerRegistry, prefixes: PrefixIndex, block_size: int, settings: RouterSettings
    ) -> None:
        self._registry = registry
        self._prefixes = prefixes
        self._block_size = block_size
        self._settings = settings

    @property
    def is_anyone_coming(self) -> bool:
        """Whether a worker that does not take requests now is expected to, soon."""
        return self._registry.is_anyone_coming

    def try_place(
        self,
        num_prompt_tokens: int,
        hashes: list[BlockHash],
        excluded: Collection[PeerAddress],
        num_answer_tokens: float,
        num_most_tokens: int,
    ) -> Placement | None:
        """Choose workers for a prompt; None if no worker outside `excluded` takes requests now.

        `num_answer_tokens`: how long an answer is expected. `num_most_tokens`: of prompt and answer, if it is longer.
        """
        matched_blocks = self._prefixes.match_blocks(hashes)
        if self._settings.is_adaptive:
            return self._place_by_prediction(
                num_prompt_tokens, matched_blocks, excluded, num_answer_tokens, num_most_tokens
            )
        return self._place_by_load(num_prompt_tokens, matched_blocks, excluded)

    def _place_by_prediction(
        self,
        num_prompt_tokens: int,
        matched_blocks: Mapping[WorkerId, int],
        excluded: Collection[PeerAddress],
        num_answer_tokens: float,
        num_most_tokens: int,
    ) -> Placement | None:
        settings = self._settings
        pair = choose_pair(
            num_prompt_tokens,
            {worker_id: count * self._block_size for worker_id, count in matched_blocks.items()},
            [
                load
                for load in self._registry.worker_loads(self._block_size)
                if self._registry.life(load.worker_id).address not in excluded
            ],
            Slo(settings.slo_ttft_s, settings.slo_tpot_s),
            num_answer_tokens,
            num_most_tokens,
            self._block_size,
            settings.local_prefill_max_tokens,
        )
        if pair is None:
            return None
        return self._placement(
            num_prompt_tokens,
            matched_blocks.get(pair.owner, 0),
            pair.owner,
            None if pair.reader == pair.owner else pair.reader,
            pair,
        )

    def _place_by_load(
        self, num_prompt_tokens: int, matched_blocks: Mapping[WorkerId, int], excluded: Collection[PeerAddress]
    ) -> Placement | None:
        loads = {
            load.worker_id: load
            for load in self._registry.decode_loads(self._block_size)
            if self._registry.life(load.worker_id).address not in excluded
        }
        num_prompt_blocks = -(-num_prompt_tokens // self._block_size)
        decode_id = choose_decode_worker(num_prompt_blocks, matched_blocks, loads.values())
        if decode_id is None:
            return None
        num_matched = matched_blocks.get(decode_id, 0)
        prefill_id = choose_prefill_path(
            self._num_uncached_tokens(num_prompt_tokens, num_matched),
            loads[decode_id],
            self._registry.prefill_loads(),
            self._settings.local_prefill_max_tokens,
        )
        return self._placement(num_prompt_tokens, num_matched, decode_id, prefill_id)

    def _num_uncached_tokens(self, num_prompt_tokens: int, num_matched_blocks: int) -> int:
        # The last prompt token is always computed: its logits are the first token.
        return max(num_prompt_tokens - num_matched_blocks * self._block_size, 1)

    def _placement(
        self,
        num_prompt_tokens: int,
        num_matched_blocks: int,
        decode_id: WorkerId,
        prefill_id: WorkerId | None,
        forecast: Pair | None = None,
    ) -> Placement:
        return Placement(
            decode=self._registry.life(decode_id),
            prefill=None if prefill_id is None else self._registry.life(prefill_id),
            num_prompt_tokens=num_prompt_tokens,
            num_uncached_tokens=self._num_uncached_tokens(num_prompt_tokens, num_matched_blocks),
            num_new_blocks=-(-num_prompt_tokens // self._block_size) - num_matched_blocks,
            forecast=forecast,
        )
