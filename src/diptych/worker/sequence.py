"""One answer as the worker that owns its blocks sees it: a choice of a request, with the prompt before it."""

from dataclasses import dataclass, field
from enum import Enum, auto

from diptych.core.events import Lifecycle, Timeline
from diptych.core.ids import FIRST_ROUTER, BlockHash, BlockId, RequestId, RouterId
from diptych.core.messages import CopyOrder, FormerAttempt, PeerAddress
from diptych.core.request import Request, TokenLogprobs
from diptych.worker.sampling.chooser import TokenChooser


class SequenceState(Enum):
    """Where a sequence is. It holds blocks in all states but the first two."""

    COMPILING = auto()
    """Its grammar is being compiled; it has no place in the queue yet."""
    WAITING = auto()
    """In the queue, without blocks."""
    GRANTED = auto()
    """A prefill worker writes its prompt into its blocks."""
    COPYING = auto()
    """This worker copies a part of its prompt's KV from another worker's cache into its blocks."""
    LOADING = auto()
    """The tier below fills its first blocks; then it is granted, or read here."""
    PREFILLING = auto()
    """This worker writes its prompt, chunk by chunk."""
    DECODING = auto()
    """This worker writes one token a step: a new one, or after a preemption one that is known already."""


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens, blocks and progress of one choice of a request.

    Until its prompt has been read, the first choice stands for all of them; then the others fork off and share the
    prompt's blocks.

    Invariant: KV of `token_ids[:num_computed_tokens]` is in `block_table`; its other tokens are known but not computed.
    """

    request: Request
    attempt: int
    prefill: PeerAddress | None
    """Who shall read the prompt; None: this worker."""
    arrival: int
    """Counts the sequences of this worker in order of arrival; a request's choices follow each other."""
    token_ids: list[int]
    """The prompt and then the answer."""
    block_hashes: list[BlockHash]
    """Of the full blocks of `token_ids` that have been hashed so far, from the first on."""
    chooser: TokenChooser
    former: FormerAttempt | None = None
    """The attempt of a worker that died, if this sequence goes on from there."""
    copy_order: CopyOrder | None = None
    """What to copy of its prompt from another worker's cache."""
    router: RouterId = FIRST_ROUTER
    """Who waits for it,"""
    frontend: int = 0
    """and which life of that router's frontend."""
    num_due_choices: int = 0
    """Further choices that fork off once the prompt has been read."""
    state: SequenceState = SequenceState.WAITING
    block_table: list[BlockId] = field(default_factory=list)
    epoch: int = 0
    """Of its present reservation; stands in the header of every block it may write."""
    shared_epochs: list[int] = field(default_factory=list)
    """Of its first blocks, those that it only reads: the epochs under which they were written."""
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    """Found in the prefix cache at its first reservation, or copied or loaded into it then."""
    num_loaded_tokens: int = 0
    """Of those, from the tiers below."""
    num_preemptions: int = 0
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Of the prompt's tokens from the second on, as far as computed here; empty unless asked for."""
    timeline: Timeline = field(default_factory=dict)

    @property
    def request_id(self) -> RequestId:
        """Id of its request."""
        return self.request.request_id

    @property
    def choice(self) -> int:
        """Which of the request's answers this is."""
        return self.chooser.choice

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.request.prompt_token_ids)

    @property
    def num_known_tokens(self) -> int:
        """Length of prompt and answer so far."""
        return len(self.token_ids)

    @property
    def is_decoding(self) -> bool:
        """Whether its prompt has been read and its answer is being written."""
        return self.state is SequenceState.DECODING

    @property
    def num_output_tokens(self) -> int:
        """Length of the answer so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_remaining_prompt_tokens(self) -> int:
        """Prompt tokens not computed yet."""
        return self.num_prompt_tokens - self.num_computed_tokens

    @property
    def num_places(self) -> int:
        """Places in the batch that it takes, or will once its other choices have forked off."""
        return 1 + self.num_due_choices

    @property
    def choices_to_begin(self) -> list[int]:
        """Choices of which whoever reads the prompt samples the first token: none if the answer has begun before."""
        return [] if self.num_output_tokens else list(range(self.choice, self.choice + self.num_places))

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether logits of all prompt tokens are needed: so asked, and the answer has not begun."""
        return self.request.sampling.num_prompt_logprobs is not None and self.num_output_tokens == 0

    def note_first(self, event: Lifecycle, now_s: float) -> bool:
        """Record when `event` happened for the first time; tell whether that is now."""
        is_first = event not in self.timeline
        self.timeline.setdefault(event, now_s)
        return is_first
