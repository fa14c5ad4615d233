"""An engine without weights: a cost model instead of time, and tokens that betray any mistake with KV.

Its KV is real memory in real blocks: each token leaves a 64-bit state in its slot, computed from its id, its position
and the state before it, *read back through the block table*. The next token is a function of the last state and of what
every full block before it ends with: it attends to all of them, as real weights would. So a wrong block table, a block
that two sequences write, or a chunk that is skipped changes the answer, wherever in the table it is; and the right
answer is known without any engine (`expected_tokens`).
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from diptych.core.clock import Clock
from diptych.core.cost_model import CostModel
from diptych.core.ids import BlockId
from diptych.engine.base import Logits, Row, WarmUp
from diptych.kv.layout import CacheTensor, KVLayout

BLOCK_SIZE_TOKENS = 32
STATE_BYTES = 8
MASK = 2**64 - 1
NUM_LIKELY_TOKENS = 8
UNLIKELY_LOGIT = -30.0
LIKELY_LOGITS = 8.0 - np.arange(NUM_LIKELY_TOKENS, dtype=np.float32)
FIRST_TOKEN_ID = 256
"""Lower ids are often control tokens, which would leave no text."""


def next_state(state: int, token_id: int, position: int) -> int:
    """Return the state that a token leaves after `state` (0 before the first token)."""
    mixed = (state ^ ((token_id + 1) * 0x9E3779B97F4A7C15)) & MASK
    mixed = (mixed + position * 0xD1B54A32D192ED03) & MASK
    mixed = ((mixed ^ (mixed >> 31)) * 0xBF58476D1CE4E5B9) & MASK
    return mixed ^ (mixed >> 29)


def attend(seen: int, block_index: int, last_state: int) -> int:
    """Return what a sequence has seen of its full blocks (0 before the first) when that one is full, too."""
    return (seen + (2 * block_index + 1) * last_state) & MASK


def token_of(state: int, vocab_size: int) -> int:
    """Return the likeliest token after `state`, to which what has been seen of full blocks is added."""
    return FIRST_TOKEN_ID + state % (vocab_size - FIRST_TOKEN_ID)


def expected_tokens(prompt_token_ids: Iterable[int], num_tokens: int, vocab_size: int) -> list[int]:
    """Return the greedy answer to a prompt."""
    tokens, answer = iter(prompt_token_ids), list[int]()
    state, seen, position = 0, 0, 0
    while len(answer) < num_tokens:
        token_id = next(tokens, None)
        if token_id is None:
            token_id = token_of((state + seen) & MASK, vocab_size)
            answer.append(token_id)
        state = next_state(state, token_id, position)
        position += 1
        if position % BLOCK_SIZE_TOKENS == 0:
            seen = attend(seen, position // BLOCK_SIZE_TOKENS - 1, state)
    return answer


class ModeledEngine:
    """A `StepEngine` that sleeps on `clock` for as long as `cost_model` says."""

    def __init__(self, cost_model: CostModel, clock: Clock, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        self.name = "modeled"
        tensor = CacheTensor("state", (BLOCK_SIZE_TOKENS, STATE_BYTES), "u8")
        self.layout = KVLayout.of([tensor], BLOCK_SIZE_TOKENS)
        self.vocab_size = vocab_size
        self.eos_token_ids = eos_token_ids
        self._cost_model = cost_model
        self._clock = clock
        self._states: npt.NDArray[np.uint64] | None = None
        self._logits: Logits = np.zeros((0, vocab_size), np.float32)
        self._set_in_last_step = (np.zeros(0, np.intp), np.zeros(0, np.intp))

    def bind(self, blocks: memoryview, num_blocks: int) -> None:
        """Use the shared blocks as an array of states [num_blocks, block_size]."""
        num_bytes = num_blocks * self.layout.block_bytes
        self._states = np.frombuffer(blocks[:num_bytes], np.uint64).reshape(num_blocks, BLOCK_SIZE_TOKENS)

    def warm_up(self, plan: WarmUp, block_table: Sequence[BlockId]) -> float:
        """Return the modeled prefill speed; there is nothing to warm up."""
        if not plan.prefill_tokens:
            return 0.0
        seconds = self._cost_model.step_s([(plan.prefill_tokens, 0)])
        return plan.prefill_tokens / seconds if seconds > 0 else 1e9

    def step(self, rows: Sequence[Row]) -> Logits:
        """Write the states of all rows' tokens; return logits with one clear maximum and a few lesser ones."""
        duration_s = self._cost_model.step_s([(len(row.token_ids), row.num_past_tokens) for row in rows])
        if duration_s > 0:
            self._clock.sleep(duration_s)
        states = [self._write(row) for row in rows]
        sampled = [state for row, written in zip(rows, states, strict=True) for state in _last(written, row.num_logits)]
        return self._logits_of(sampled)

    def _logits_of(self, states: list[int]) -> Logits:
        if len(self._logits) < len(states):
            self._logits = np.full((len(states), self.vocab_size), UNLIKELY_LOGIT, np.float32)
        else:  # a vocabulary is long: only what the last step has set is set back
            self._logits[self._set_in_last_step] = UNLIKELY_LOGIT
        rows = np.repeat(np.arange(len(states)), NUM_LIKELY_TOKENS)
        tokens = [
            token_of((state + rank * 7919) & MASK, self.vocab_size)
            for state in states
            for rank in reversed(range(NUM_LIKELY_TOKENS))  # where two ranks meet, the likelier is written last
        ]
        self._set_in_last_step = (rows, np.array(tokens, np.intp))
        self._logits[self._set_in_last_step] = np.tile(LIKELY_LOGITS[::-1], len(states))
        return self._logits[: len(states)]

    def _write(self, row: Row) -> list[int]:
        """Write the states that the row's tokens leave; return what the next token after each of them follows from."""
        assert self._states is not None, "bind comes before step"
        position = row.num_past_tokens
        state = self._read(row.block_table, position - 1) if position else 0
        seen = self._seen(row.block_table[: position // BLOCK_SIZE_TOKENS])
        written: list[int] = []
        for token_id in row.token_ids:
            state = next_state(state, token_id, position)
            self._states[row.block_table[position // BLOCK_SIZE_TOKENS], position % BLOCK_SIZE_TOKENS] = state
            position += 1
            if position % BLOCK_SIZE_TOKENS == 0:
                seen = attend(seen, position // BLOCK_SIZE_TOKENS - 1, state)
            written.append((state + seen) & MASK)
        return written

    def _seen(self, full_blocks: Sequence[BlockId]) -> int:
        """Return what `attend` comes to over these blocks, all at once."""
        assert self._states is not None
        if not full_blocks:
            return 0
        weights = np.arange(1, 2 * len(full_blocks), 2, dtype=np.uint64)
        return int((self._states[list(full_blocks), -1] * weights).sum())

    def _read(self, block_table: Sequence[BlockId], position: int) -> int:
        assert self._states is not None
        return int(self._states[block_table[position // BLOCK_SIZE_TOKENS], position % BLOCK_SIZE_TOKENS])


def _last(states: list[int], number: int) -> list[int]:
    return states[len(states) - number :]
