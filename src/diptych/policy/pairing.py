"""Which worker writes an answer and which one reads its prompt, by predicted times. Pure.

Where workers may do either phase, roles are preferences, and two questions become one: of all pairs (owner, reader),
which one keeps to the SLO at the least price? The price is the time of cores that the request takes from others, plus
the client's wait for the first token. An answer takes a row of each step on a worker that is there for answers, and the
whole pass through the weights on a prefill worker that writes nothing else. So decode workers fill up first, those with
the least to do before others, prefill workers take over answers when they are full, and a decode worker reads prompts
itself when it has nothing to write or their queues are long.

Invariants: a worker that is not accepting is never chosen; the order of the snapshots does not matter.

See: DistServe (OSDI 2024) for the phases' interference; Mooncake (FAST 2025, algorithm 1) for choosing by predicted
TTFT; NVIDIA Dynamo, conditional disaggregation. There a role is fixed while a request is placed; here it is not.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from diptych.core.cost_model import CostModel
from diptych.core.ids import NO_NODE, NodeId, WorkerId
from diptych.core.messages import Role
from diptych.core.slo import Slo
from diptych.policy.batching import ANSWERS_SHARE, answers_when_read
from diptych.policy.copying import GUESSED_COPY_BLOCK_S
from diptych.policy.nodes import FAR_TOKEN_S, Reading, hand_over_s, plan_reading

TTFT_SHARE = 0.8
"""Of the time to the first token that the SLO allows: a prediction of more has no room for a mistake."""
LATE_TTFTS = 0.5
"""Of the time to the first token: a prefill worker that takes longer than this may be spared a prompt."""
LEAST_FREE = 0.05
"""Of a reader's time: prompts go on, if slowly, however many answers run."""
NUM_READERS = 2
"""How many of the workers with the shortest queues are looked at for each owner, besides the owner itself."""
RUNNING_LENGTH = 1.5
"""How many times as long the answers are, in the mean, that are being written at a moment: of long ones more are, since
they run for longer. That is 1 and the relative variance of lengths, which is 0.53 in Mooncake's conversation trace."""
CHUNK_TOKENS = 256
"""In which prompts are thought to be read: predictions hardly depend on it."""


class WorkerLoad(msgspec.Struct, frozen=True, gc=False):
    """A worker at the moment of the decision.

    Routers make several for each request, and such a struct is made in a sixth of a frozen dataclass's time.
    """

    worker_id: WorkerId
    role: Role
    is_accepting: bool
    """Lives, is ready, is not draining."""
    costs: CostModel
    cost_scale: float
    """How many times as long steps really take."""
    num_blocks: int
    """Owned; 0: it writes no answers."""
    num_used_blocks: int
    num_answers: int
    """Being written."""
    num_unread: int
    """Answers that it will write when their prompts have been read, by whomever."""
    num_context_tokens: int
    """Of both, roughly."""
    num_queued_prompts: int
    """To read here, whoever writes the answers."""
    num_queued_tokens: int
    num_queued_pairs: int
    """Of one of those tokens and one that it attends to."""
    prefill_share: float
    """Of its time of late, spent on prompts."""
    copy_block_s: float = GUESSED_COPY_BLOCK_S
    """How long it takes to copy a block within the segment."""
    mean_written_tokens: float | None = None
    """Of the answers that are being written, so far; None: not known, taken for half of what is expected."""
    node: NodeId = NO_NODE
    """The machine whose memory it uses."""

    def step_s(self, num_answers: float) -> float:
        """Return how long a step takes that continues so many answers of this worker's mean length."""
        mean_tokens = self.num_context_tokens / max(self.num_answers + self.num_unread, 1)
        return self.cost_scale * self.costs.answers_s(max(num_answers, 0.0), mean_tokens)

    def read_s(self, num_tokens: int, num_past: int) -> float:
        """Return how long a prompt takes with nothing else to do."""
        return self.cost_scale * self.costs.prefill_s(num_tokens, num_past, CHUNK_TOKENS)

    @property
    def queue_s(self) -> float:
        """How long the prompts take that are to be read here already, with nothing else to do."""
        if not self.num_queued_tokens:
            return 0.0
        return self.cost_scale * self.costs.queue_s(self.num_queued_tokens, self.num_queued_pairs, CHUNK_TOKENS)


class Pair(NamedTuple):
    """Who does what, and what was predicted."""

    owner: WorkerId
    reader: WorkerId
    """May be the owner."""
    ttft_s: float
    step_s: float
    """Of the owner when the prompt has been read: its TPOT."""
    least_ttft_s: float
    """The same, had the reader nothing else to do."""
    least_step_s: float
    """The same, had the owner nothing else to do."""
    step_share: float
    """How much of a token's time a step of the owner may take."""
    step_now_s: float
    """Of the owner with one answer more than it is writing at this moment: what shows before prompts have been read."""
    reading: Reading
    """What the reader does."""


def choose_pair(  # noqa: PLR0913, PLR0917  what a decision depends on
    num_prompt_tokens: int,
    matched_tokens: Mapping[WorkerId, int],
    loads: Iterable[WorkerLoad],
    slo: Slo,
    num_answer_tokens: float,
    num_most_tokens: int,
    block_size: int,
    local_prefill_max_tokens: int,
) -> Pair | None:
    """Return the pair that keeps to the SLO at the least price, or misses it by the least; None: nobody writes now.

    `matched_tokens`: of the prompt in each worker's prefix cache. `num_answer_tokens`: how many are expected.
    `num_most_tokens`: of prompt and answer together; a worker with fewer blocks could never end the answer.
    """
    accepting = [load for load in loads if load.is_accepting]
    owners = [load for load in accepting if load.num_blocks * block_size >= num_most_tokens]
    as_reader = {
        load.worker_id: Reader.of(load, slo, num_answer_tokens, matched_tokens.get(load.worker_id, 0))
        for load in accepting
    }
    queues = sorted(as_reader.values(), key=lambda one: (one.queue_s, _order(one.load)))
    readers = [one for one in queues if one.load.role is Role.PREFILL]
    nearest = {node: _nearest(readers, node) for node in {owner.node for owner in owners}}
    candidates: list[tuple[tuple[bool, bool, float, float, tuple[int, WorkerId], bool], Pair]] = []
    for owner in owners:
        num_uncached = max(num_prompt_tokens - matched_tokens.get(owner.worker_id, 0), 1)
        num_new_blocks = -(-num_uncached // block_size)
        is_full = owner.num_used_blocks + num_new_blocks > owner.num_blocks
        is_helper = owner.role is Role.PREFILL
        own = as_reader[owner.worker_id]
        among = nearest[owner.node]
        for reader in _readers_for(own, among, num_prompt_tokens, num_uncached, slo.ttft_s, local_prefill_max_tokens):
            pair, excess, price_s = _judge(owner, reader, num_prompt_tokens, num_uncached, slo, num_answer_tokens)
            # A prefill worker helps out only where it has the time: the prompts of all others wait for what it writes.
            key = (is_helper and excess > 1.0, is_full, excess, price_s, _order(owner), reader is own)
            candidates.append((key, pair))
    return min(candidates, key=lambda candidate: candidate[0])[1] if candidates else None


class Reader(NamedTuple):
    """A worker as one that may read a prompt."""

    load: WorkerLoad
    free_share: float
    """Of its time, left for prompts by answers that are written at the SLO's pace."""
    queue_s: float
    """How long the prompts take that it has to read already."""
    num_cached_tokens: int
    """Of the prompt in its own cache: of use where the owner is on another machine."""

    @classmethod
    def of(cls, load: WorkerLoad, slo: Slo, num_answer_tokens: float, num_cached_tokens: int) -> "Reader":
        """Return a worker as a reader of a prompt, so much of which it has cached."""
        free = _free_share(load, slo, num_answer_tokens)
        return cls(load, free, load.queue_s / free, num_cached_tokens)

    def plan(self, owner: WorkerLoad, num_prompt_tokens: int, num_cached_tokens: int) -> Reading:
        """Return what it does with the prompt for an owner that has cached so much of it."""
        is_far = self.load.node != owner.node
        at_reader, compute_s = self.num_cached_tokens, self.load.read_s
        return plan_reading(num_prompt_tokens, num_cached_tokens, at_reader, is_far=is_far, compute_s=compute_s)

    def work_s(self, reading: Reading) -> float:
        """Return how long that takes with nothing else to do."""
        return self.load.read_s(reading.num_tokens, reading.num_past) + reading.num_fetched * FAR_TOKEN_S

    def ttft_s(self, reading: Reading) -> float:
        """Return in how long it will have read that."""
        return self.queue_s + self.work_s(reading) / self.free_share


def _nearest(readers: Sequence[Reader], node: NodeId) -> Sequence[Reader]:
    """Return the few readers with the shortest queues, seen from a machine: of equal ones, its own come first.

    And the one elsewhere that has most of the prompt cached: it may have less to do though others wait there.
    """
    few = sorted(readers, key=lambda one: (one.queue_s, one.load.node != node))[:NUM_READERS]
    elsewhere = [one for one in readers if one.num_cached_tokens and one.load.node != node]
    most = max(elsewhere, key=lambda one: one.num_cached_tokens, default=None)
    return few if most is None or most in few else [*few, most]


def _readers_for(  # noqa: PLR0913, PLR0917
    own: Reader,
    readers: Sequence[Reader],
    num_prompt_tokens: int,
    num_uncached: int,
    slo_ttft_s: float,
    local_prefill_max_tokens: int,
) -> Iterator[Reader]:
    """Yield who may read for an owner, itself being `own`. Blocks that a prefill worker owns are read by itself.

    A decode worker that writes answers reads only what others would read too late: what it reads, it does not write.
    """
    owner = own.load
    if owner.role is not Role.DECODE or num_uncached <= local_prefill_max_tokens or not readers:
        yield own
        return
    yield from readers
    is_idle = owner.num_answers + owner.num_unread == 0
    plans = [(one, one.plan(owner, num_prompt_tokens, num_prompt_tokens - num_uncached)) for one in readers]
    soonest_s = min(one.queue_s + one.load.read_s(plan.num_tokens, 0) for one, plan in plans)
    if is_idle or soonest_s > LATE_TTFTS * slo_ttft_s:
        yield own


def predict_pair(  # noqa: PLR0913, PLR0917  what a prediction depends on
    owner: WorkerLoad,
    reader: Reader,
    num_prompt_tokens: int,
    num_cached_tokens: int,
    slo: Slo,
    num_answer_tokens: float,
) -> Pair:
    """Return what is predicted of a pair that somebody else has chosen."""
    num_uncached = max(num_prompt_tokens - num_cached_tokens, 1)
    return _judge(owner, reader, num_prompt_tokens, num_uncached, slo, num_answer_tokens)[0]


def _judge(  # noqa: PLR0913, PLR0917
    owner: WorkerLoad,
    reader: Reader,
    num_prompt_tokens: int,
    num_uncached: int,
    slo: Slo,
    num_answer_tokens: float,
) -> tuple[Pair, float, float]:
    """Return the pair, by how much it misses the SLO (1: not at all), and its price in seconds."""
    reading = reader.plan(owner, num_prompt_tokens, num_prompt_tokens - num_uncached)
    own_s, ttft_s = reader.work_s(reading), reader.ttft_s(reading)
    num_answers = _answers_when_read(owner, ttft_s, ttft_s / (reader.load.num_queued_prompts + 1), num_answer_tokens)
    step_s = owner.step_s(num_answers + 1)
    # A pass through the weights that an idle worker makes for one answer keeps nobody waiting, unless it reads prompts.
    num_beside = num_answers if owner.role is Role.PREFILL else max(num_answers, 1.0)
    row_s = owner.step_s(num_beside + 1) - owner.step_s(num_beside)
    # Prompts are a prefill worker's first duty; a decode worker reads them only in time that its answers leave.
    left = 1.0 - owner.prefill_share if owner.role is Role.PREFILL else 1.0
    share = max(min(ANSWERS_SHARE[owner.role], ANSWERS_SHARE[Role.DECODE] * left), LEAST_FREE)
    tpot_ratio = step_s / (slo.tpot_s * share)
    excess = max(tpot_ratio, ttft_s / (slo.ttft_s * TTFT_SHARE), 1.0)
    price_s = own_s + num_answer_tokens * row_s + ttft_s
    price_s += hand_over_s(num_uncached + reading.num_fetched, reader.load.node, owner.node)
    least_step_s = owner.cost_scale * owner.costs.answers_s(1, num_prompt_tokens)
    now_s = owner.step_s(owner.num_answers + 1)
    pair = Pair(owner.worker_id, reader.load.worker_id, ttft_s, step_s, own_s, least_step_s, share, now_s, reading)
    return pair, excess, price_s


def _answers_when_read(load: WorkerLoad, wait_s: float, read_each_s: float, num_answer_tokens: float) -> float:
    """Return how many answers a worker will be writing when a prompt has been read after `wait_s`.

    Those of now end one by one, as far as they are; of the unread ones, those count whose prompts are read within an
    answer's time.
    """
    answer_s = num_answer_tokens * load.step_s(load.num_answers + 1)
    written = load.mean_written_tokens
    written_share = 0.5 if written is None else written / max(RUNNING_LENGTH * num_answer_tokens, 1.0)
    return answers_when_read(
        load.num_answers, load.num_unread, wait_s, read_each_s, answer_s, written_share, RUNNING_LENGTH
    )


def _free_share(load: WorkerLoad, slo: Slo, num_answer_tokens: float) -> float:
    """Return how much of a worker's time its answers leave for prompts while they are written at the SLO's pace."""
    if load.num_answers + load.num_unread == 0:
        return 1.0
    read_each_s = load.read_s(max(load.num_queued_tokens // max(load.num_queued_prompts, 1), 1), 0)
    num_answers = _answers_when_read(load, 0.0, read_each_s, num_answer_tokens)
    return max(1.0 - load.step_s(num_answers) / slo.tpot_s, LEAST_FREE)


def _order(load: WorkerLoad) -> tuple[int, WorkerId]:
    """Return the place in a tie: who writes anyway comes first."""
    return int(load.role is Role.PREFILL), load.worker_id
