"""What a simulated worker knows of a request: how far it is, and which blocks it holds."""

from dataclasses import dataclass, field

from diptych.core.events import Timeline
from diptych.core.ids import BlockHash, BlockId, RequestId
from diptych.core.messages import Grant, Submit


@dataclass(slots=True, eq=False)
class SimulatedSequence:
    """A request on the worker that owns its blocks. Compared by identity."""

    submit: Submit
    num_answer_tokens: int
    """How long its answer will be: no router knows that."""
    hashes: list[BlockHash]
    """Of the prompt's full blocks."""
    epoch: int
    block_table: list[BlockId] = field(default_factory=list)
    num_cached_blocks: int = 0
    """Of the prompt, found here or copied from elsewhere."""
    num_copied_blocks: int = 0
    num_output_tokens: int = 0
    timeline: Timeline = field(default_factory=dict)

    @property
    def request_id(self) -> RequestId:
        """The request's id."""
        return self.submit.request.request_id

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.submit.request.prompt_token_ids)

    @property
    def num_most_tokens(self) -> int:
        """Tokens of prompt and answer."""
        return self.num_prompt_tokens + self.num_answer_tokens

    @property
    def num_context_tokens(self) -> int:
        """Tokens that the next step of the answer attends to."""
        return self.num_prompt_tokens + self.num_output_tokens


@dataclass(slots=True, eq=False)
class Prompt:
    """A prompt on the worker that reads it."""

    num_tokens: int
    num_read: int
    """The cached ones included."""
    owned: SimulatedSequence | None
    """Where owner and reader are one."""
    granted: Grant | None
    """Where they are not."""

    @property
    def num_left(self) -> int:
        """Tokens to read."""
        return self.num_tokens - self.num_read
