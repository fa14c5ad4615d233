"""A prompt that a worker reads into blocks of another one: how far it is, what is next, and what the blocks hold.

The blocks of a worker of another machine cannot be written. Such a prompt is read into blocks of the reader's own, as
a sequence of its (`scratch`), and pushed from there (remote_prompts.py).
"""

from collections.abc import Sequence as Several
from dataclasses import dataclass, field

from diptych.core.ids import BlockId
from diptych.core.messages import Grant
from diptych.core.request import TokenLogprobs
from diptych.engine.base import Row
from diptych.kv.header import BlockCommit, parent_tag, request_key
from diptych.worker.memory import StepPart
from diptych.worker.sequence import Sequence


@dataclass(slots=True, eq=False)
class GrantedPrompt:
    """A grant and how far it has been filled."""

    grant: Grant
    num_computed_tokens: int
    started_s: float = 0.0
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Of the prompt's tokens from the second on, as far as computed; empty unless asked for."""
    scratch: Sequence | None = None
    """What reads it into blocks of this worker; None: it is read into those that were granted."""

    @property
    def block_table(self) -> Several[BlockId]:
        """The blocks that it is read into, in which it has been read as far as `num_computed_tokens`."""
        return self.grant.block_table if self.scratch is None else self.scratch.block_table

    @property
    def epoch(self) -> int:
        """Under which those blocks are written."""
        return self.grant.epoch if self.scratch is None else self.scratch.epoch

    @property
    def _shared_epochs(self) -> Several[int]:
        return self.grant.shared_epochs if self.scratch is None else self.scratch.shared_epochs

    @property
    def num_remaining_tokens(self) -> int:
        """Prompt tokens not computed yet."""
        return len(self.grant.prompt_token_ids) - self.num_computed_tokens

    @property
    def num_prompt_logprobs(self) -> int | None:
        """As the request asks for it, and nobody has told yet."""
        return self.grant.sampling.num_prompt_logprobs if self.grant.choices else None

    @property
    def told_prompt_logprobs(self) -> list[TokenLogprobs] | None:
        """The log-probabilities of the whole prompt; None unless asked for."""
        return None if self.num_prompt_logprobs is None else self.prompt_logprobs

    def part(self, num_tokens: int) -> StepPart:
        """Return what the next `num_tokens` of it are in a step."""
        grant, begin = self.grant, self.num_computed_tokens
        if self.num_prompt_logprobs is not None:
            num_logits = num_tokens
        else:
            num_logits = int(num_tokens == self.num_remaining_tokens and len(grant.choices) > 0)
        row = Row(grant.prompt_token_ids[begin : begin + num_tokens], begin, self.block_table, num_logits)
        return StepPart(row, grant.request_id, self.epoch, self._shared_epochs)

    def commits(self, num_tokens: int, block_size: int) -> list[BlockCommit]:
        """Return what the granted blocks hold when a step has computed the next `num_tokens` in them.

        Nothing where the answer has begun before: its choice, which the records need, is its owner's to know.
        """
        grant, begin, end = self.grant, self.num_computed_tokens, self.num_computed_tokens + num_tokens
        if not grant.choices:
            return []
        key = request_key(grant.request_id, grant.arrived_s, grant.attempt, grant.choices[0])
        commits: list[BlockCommit] = []
        for index in range(begin // block_size, (end - 1) // block_size + 1):
            num_filled = min(end - index * block_size, block_size)
            block_id, block_hash, tag = grant.block_table[index], None, None
            if num_filled == block_size:
                block_hash = grant.block_hashes[index]
                tag = parent_tag(grant.block_hashes[index - 1]) if index else None
            commits.append(BlockCommit(block_id, block_hash, key, index, num_filled, grant.epoch, parent_tag=tag))
        return commits
