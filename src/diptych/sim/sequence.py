"""What a simulated worker knows of a request: how far it is, and which blocks it holds."""

from dataclasses import dataclass, field

from diptych.core.events import Timeline
from diptych.core.ids import BlockHash, BlockId, RequestId
from diptych.core.messages import Grant, Submit
from diptych.core.request import Request
from diptych.sim.answers import AnswerBatch
from diptych.worker.sequence import SequenceState


@dataclass(slots=True, eq=False)
class SimulatedSequence:
    """A request on the worker that owns its blocks. Compared by identity.

    A `diptych.worker.pace.Paced`. While it is in a batch of answers, that one knows how far it is.
    """

    submit: Submit
    num_answer_tokens: int
    """How long its answer will be: no router knows that."""
    hashes: list[BlockHash]
    """Of the prompt's full blocks."""
    arrival: int
    """Counts the sequences of this worker in the order in which they came."""
    num_prompt_tokens: int
    num_known_outputs: int
    """Tokens of the answer that are known beyond those that follow from how far it is: a life before has written them,
    or it was preempted and writes them again."""
    epoch: int = 0
    """Of its present reservation."""
    state: SequenceState = SequenceState.WAITING
    block_table: list[BlockId] = field(default_factory=list)
    num_cached_blocks: int = 0
    """Of the prompt, found here, copied from elsewhere or loaded, since its last reservation."""
    num_told_cached_tokens: int = 0
    """The same as of its first reservation."""
    num_loaded_tokens: int = 0
    num_told: int = 0
    """Tokens of its answer that the router has heard of."""
    num_preemptions: int = 0
    num_computed: int = 0
    """Tokens whose KV is in its blocks, as of its entry into `batch`."""
    batch: AnswerBatch | None = None
    step_joined: int = 0
    lane: int = 0
    """Of that batch, on a worker with several pipeline stages."""
    timeline: Timeline = field(default_factory=dict)

    @property
    def request(self) -> Request:
        """The request."""
        return self.submit.request

    @property
    def request_id(self) -> RequestId:
        """The request's id."""
        return self.submit.request.request_id

    @property
    def num_computed_tokens(self) -> int:
        """Tokens whose KV is in its blocks now."""
        return self.num_computed + (0 if self.batch is None else self.batch.num_steps - self.step_joined)

    @property
    def num_output_tokens(self) -> int:
        """Length of the answer so far."""
        if self.state is not SequenceState.DECODING:
            return self.num_known_outputs
        return max(self.num_known_outputs, self.num_computed_tokens - self.num_prompt_tokens + 1)

    @property
    def num_known_tokens(self) -> int:
        """Length of prompt and answer so far."""
        return self.num_prompt_tokens + self.num_output_tokens

    @property
    def num_last_computed(self) -> int:
        """How many tokens will have been computed at its end: the last one never is."""
        return self.num_prompt_tokens + self.num_answer_tokens - 1

    @property
    def num_places(self) -> int:
        """Places in the batch: answers have one choice here."""
        return 1

    @property
    def is_decoding(self) -> bool:
        """Whether its prompt has been read and its answer is being written, from the next step on at the latest."""
        return self.state is SequenceState.DECODING


@dataclass(slots=True, eq=False)
class Prompt:
    """A prompt on the worker that reads it."""

    since_s: float
    """When its request came."""
    num_tokens: int
    num_read: int
    """The cached ones included."""
    owned: SimulatedSequence | None
    """Where owner and reader are one."""
    granted: Grant | None
    """Where they are not."""
    started_s: float | None = None
    num_sent: int = 0
    """Tokens of which KV has been put on the link."""

    @property
    def num_left(self) -> int:
        """Tokens to read."""
        return self.num_tokens - self.num_read
