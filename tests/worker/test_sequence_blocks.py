"""Which blocks of a sequence come from the cache, which may go there, and what the header says of them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.core.ids import BlockHash, BlockId, RequestId
from diptych.core.request import Request, SamplingParams
from diptych.kv.eviction_order import EvictionOrder, LeastRecentlyUsed
from diptych.kv.hashing import BlockHasher
from diptych.kv.header import SegmentHeader, header_bytes
from diptych.kv.layout import CacheTensor, KVLayout
from diptych.kv.prefix_cache import PrefixCache
from diptych.worker.memory import WorkerMemory
from diptych.worker.sampling.chooser import TokenChooser
from diptych.worker.sequence import Sequence
from diptych.worker.sequence_blocks import EPOCHS_PER_INCARNATION, SequenceBlocks

BLOCK_SIZE = 4
NUM_BLOCKS = 20
PROMPT = list(range(100, 140))


class Room:
    """A worker's blocks, and sequences that come and go."""

    def __init__(
        self,
        *,
        is_exact: bool = False,
        num_blocks: int = NUM_BLOCKS,
        incarnation: int = 1,
        order: EvictionOrder | None = None,
    ) -> None:
        memory = memoryview(bytearray(header_bytes(NUM_BLOCKS)))
        self.header = SegmentHeader.create(memory, NUM_BLOCKS, 1, "layout", "model")
        self.cache = PrefixCache([BlockId(number) for number in range(num_blocks)], order=order)
        self.hasher = BlockHasher("model", "layout", block_size=BLOCK_SIZE)
        self.layout = KVLayout.of([CacheTensor("state", (BLOCK_SIZE, 8), "u8")], BLOCK_SIZE)
        self.kv = memoryview(bytearray(NUM_BLOCKS * self.layout.block_bytes))
        self.memory = WorkerMemory(self.header, self.kv, self.layout)
        self.blocks = SequenceBlocks(self.cache, self.memory, self.hasher, incarnation=incarnation, is_exact=is_exact)
        self.num_sequences = 0

    def sequence(
        self, prompt: list[int], answer: list[int] | None = None, *, cache_salt: str = "", **sampling: int
    ) -> Sequence:
        """Return a sequence that has no blocks yet, or none any more."""
        self.num_sequences += 1
        request = Request(
            request_id=RequestId(f"r{self.num_sequences}"),
            prompt_token_ids=prompt,
            sampling=SamplingParams(max_tokens=100, **sampling),  # type: ignore[arg-type]
            cache_salt=cache_salt,
            deadline_s=1.0,
            arrived_s=0.0,
        )
        chooser = TokenChooser(request.sampling, choice=0, prompt_token_ids=prompt, eos_token_ids=[], vocab_size=1000)
        hashes = self.blocks.hash_prompt(request)
        return Sequence(request, 0, None, self.num_sequences, prompt + (answer or []), hashes, chooser)

    def leave_in_cache(self, tokens: list[int], num_prompt_tokens: int | None = None) -> None:
        """Compute `tokens` as a prompt (or a prompt and an answer) and go."""
        cut = len(tokens) if num_prompt_tokens is None else num_prompt_tokens
        sequence = self.sequence(tokens[:cut], tokens[cut:])
        assert self.blocks.try_reserve(sequence, 0)
        self.blocks.on_computed([(sequence, len(tokens) - sequence.num_computed_tokens)])
        self.blocks.release(sequence)


@pytest.mark.parametrize(
    ("num_prompt_tokens", "num_cached_tokens"),
    [
        (1, 0),
        (4, 0),  # one block, of which a token must be computed: all of it
        (5, 0),  # a hit of 4 would leave a lone token
        (6, 4),
        (8, 4),
        (9, 4),  # 8 would leave one
        (10, 8),
        (11, 8),
        (12, 8),
        (13, 8),
        (14, 12),
    ],
)
def test_a_hit_leaves_at_least_two_tokens_to_compute(num_prompt_tokens: int, num_cached_tokens: int) -> None:
    room = Room()
    room.leave_in_cache(PROMPT)
    sequence = room.sequence(PROMPT[:num_prompt_tokens])

    assert room.blocks.try_reserve(sequence, 0)

    assert sequence.num_computed_tokens == num_cached_tokens
    assert sequence.num_remaining_prompt_tokens >= min(2, num_prompt_tokens)
    assert len(sequence.block_table) == num_prompt_tokens // BLOCK_SIZE + 1
    room.blocks.release(sequence)
    room.cache.check_invariants()
    assert room.cache.num_available_blocks == NUM_BLOCKS


def test_a_resumed_answer_may_go_on_from_its_last_full_block() -> None:
    room = Room()
    room.leave_in_cache(PROMPT[:23], num_prompt_tokens=9)
    sequence = room.sequence(PROMPT[:9], PROMPT[9:23])
    room.blocks._hash_up_to(sequence, 20)  # as after its first life

    assert room.blocks.try_reserve(sequence, 0)

    assert sequence.num_computed_tokens == 20
    assert len(sequence.block_table) == 6


@pytest.mark.parametrize("is_exact", [False, True])
@pytest.mark.parametrize("num_prompt_tokens", [9, 10, 12])
def test_a_resumed_answer_whose_own_blocks_are_gone_leaves_no_lone_prompt_token(
    num_prompt_tokens: int, is_exact: bool
) -> None:
    room = Room(is_exact=is_exact)
    room.leave_in_cache(PROMPT[:8])
    sequence = room.sequence(PROMPT[:num_prompt_tokens], [1, 2, 3, 4, 5, 6, 7])

    assert room.blocks.try_reserve(sequence, 0)

    assert sequence.num_computed_tokens == (4 if num_prompt_tokens == 9 else 8)
    assert sequence.num_remaining_prompt_tokens != 1


@pytest.mark.parametrize("num_prompt_tokens", [8, 10])
def test_exact_caches_blocks_of_prompts_alone(num_prompt_tokens: int) -> None:
    room = Room(is_exact=True)
    room.leave_in_cache(PROMPT[:20], num_prompt_tokens=num_prompt_tokens)

    assert room.cache.longest_match_blocks(room.hasher.hash_blocks(PROMPT[:20])) == 2


def test_answers_are_cached_otherwise() -> None:
    room = Room()
    room.leave_in_cache(PROMPT[:20], num_prompt_tokens=10)

    assert room.cache.longest_match_blocks(room.hasher.hash_blocks(PROMPT[:20])) == 5


def test_a_reservation_leaves_blocks_for_others() -> None:
    room = Room(num_blocks=5)
    sequence = room.sequence(PROMPT[:15])  # four blocks

    assert not room.blocks.try_reserve(sequence, num_spare_blocks=2)
    assert sequence.block_table == []
    assert room.cache.num_free_blocks == 5
    assert room.blocks.try_reserve(sequence, num_spare_blocks=1)


def test_a_refused_reservation_keeps_the_cache_as_it_was() -> None:
    room = Room(num_blocks=5)
    room.leave_in_cache(PROMPT[:8])
    sequence = room.sequence(PROMPT[:30])

    assert not room.blocks.try_reserve(sequence, 0)
    assert room.cache.num_cached_blocks == 2
    room.cache.check_invariants()


class CountedHits(LeastRecentlyUsed):
    """An order that notes which blocks were said to be wanted again."""

    def __init__(self) -> None:
        super().__init__()
        self.hits: list[BlockHash] = []

    def on_hit(self, block_hash: BlockHash) -> None:
        self.hits.append(block_hash)
        super().on_hit(block_hash)


@pytest.mark.parametrize(("num_prompt_tokens", "num_hits"), [(15, 2), (9, 1)])  # of 9, two blocks would leave one token
def test_blocks_count_as_reused_once_and_only_if_the_reservation_holds(num_prompt_tokens: int, num_hits: int) -> None:
    order = CountedHits()
    room = Room(num_blocks=5, order=order)
    room.leave_in_cache(PROMPT[:8])
    idle = list(order)
    sequence = room.sequence(PROMPT[:num_prompt_tokens])

    for _ in range(3):
        assert not room.blocks.try_reserve(sequence, num_spare_blocks=4)
    assert (order.hits, list(order)) == ([], idle)

    assert room.blocks.try_reserve(sequence, num_spare_blocks=1)
    assert order.hits == sequence.block_hashes[:num_hits]


def test_every_reservation_has_an_epoch_of_its_own() -> None:
    rooms = [Room(incarnation=number) for number in (1, 2)]
    epochs = []
    for room in rooms:
        for _ in range(3):
            sequence = room.sequence(PROMPT[:6])
            assert room.blocks.try_reserve(sequence, 0)
            epochs.append(sequence.epoch)
            assert set(room.header.epochs_of(sequence.block_table).tolist()) == {sequence.epoch}

    assert epochs == sorted(set(epochs))
    assert epochs[3] > 2 * EPOCHS_PER_INCARNATION, "a later life of the worker starts above all of the former"


def test_cached_blocks_keep_the_epoch_and_record_of_their_writer() -> None:
    room = Room()
    room.leave_in_cache(PROMPT[:8])
    sequence = room.sequence(PROMPT[:12])
    assert room.blocks.try_reserve(sequence, 0)

    shared, *own = room.header.epochs_of(sequence.block_table).tolist()[1:]
    assert shared < sequence.epoch
    assert set(own) == {sequence.epoch}
    assert [record and record.num_tokens for record in room.header.committed(sequence.block_table)] == [
        4,
        4,
        None,
        None,
    ]


def test_growing_takes_a_block_only_when_the_last_is_full() -> None:
    room = Room(num_blocks=3)
    sequence = room.sequence(PROMPT[:7])
    assert room.blocks.try_reserve(sequence, 0)
    room.blocks.on_computed([(sequence, 7)])
    assert room.blocks.try_grow(sequence)
    assert len(sequence.block_table) == 2

    sequence.token_ids += [1, 2, 3, 4, 5]
    room.blocks.on_computed([(sequence, 1)])
    assert room.blocks.try_grow(sequence)
    assert len(sequence.block_table) == 3
    assert room.header.epochs_of(sequence.block_table).tolist() == [sequence.epoch] * 3

    room.blocks.on_computed([(sequence, 4)])
    assert not room.blocks.try_grow(sequence)
    assert len(sequence.block_table) == 3


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 30), st.lists(st.integers(1, 9), max_size=8))
def test_records_follow_what_was_computed(num_prompt_tokens: int, chunks: list[int]) -> None:
    room = Room()
    sequence = room.sequence(PROMPT[:num_prompt_tokens], PROMPT[num_prompt_tokens:])
    assert room.blocks.try_reserve(sequence, 0)
    for chunk in chunks:
        num_tokens = min(chunk, len(PROMPT) - sequence.num_computed_tokens)
        if num_tokens:
            room.blocks.on_computed([(sequence, num_tokens)])

    records = [record for record in room.header.committed(sequence.block_table) if record is not None]
    num_computed = min(sum(chunks), len(PROMPT))
    assert sum(record.num_tokens for record in records) == num_computed
    assert [record.block_index for record in records] == list(range(-(-num_computed // BLOCK_SIZE)))
    hashes = room.hasher.hash_blocks(PROMPT)
    assert [record.block_hash for record in records if record.num_tokens == BLOCK_SIZE] == hashes[
        : num_computed // BLOCK_SIZE
    ]
    assert room.cache.longest_match_blocks(hashes) == num_computed // BLOCK_SIZE


@pytest.mark.parametrize("num_prompt_tokens", [6, 8, 1])
def test_a_fork_shares_full_blocks_and_copies_the_last(num_prompt_tokens: int) -> None:
    room = Room()
    parent = room.sequence(PROMPT[:num_prompt_tokens])
    assert room.blocks.try_reserve(parent, 0)
    for block_id in parent.block_table:
        begin, num_bytes = room.layout.block_spans(block_id, NUM_BLOCKS)[0]
        room.kv[begin : begin + num_bytes] = bytes([100 + block_id]) * num_bytes
    room.blocks.on_computed([(parent, num_prompt_tokens)])
    child = room.sequence(PROMPT[:num_prompt_tokens])

    assert room.blocks.try_fork(parent, child)

    num_full, num_in_last = divmod(num_prompt_tokens, BLOCK_SIZE)
    assert child.block_table[:num_full] == parent.block_table[:num_full]
    assert child.block_table[num_full] not in parent.block_table
    assert child.num_computed_tokens == num_prompt_tokens
    assert child.epoch != parent.epoch
    if num_in_last:
        begin, num_bytes = room.layout.block_spans(child.block_table[num_full], NUM_BLOCKS)[0]
        assert set(room.kv[begin : begin + num_bytes]) == {100 + parent.block_table[num_full]}
    records = [record for record in room.header.committed(child.block_table) if record is not None]
    assert sum(record.num_tokens for record in records) == num_prompt_tokens
    for sequence in (parent, child):
        room.blocks.release(sequence)
    room.cache.check_invariants()
    assert room.cache.num_available_blocks == NUM_BLOCKS


def test_a_fork_without_a_block_changes_nothing() -> None:
    room = Room(num_blocks=2)
    parent = room.sequence(PROMPT[:6])
    assert room.blocks.try_reserve(parent, 0)
    room.blocks.on_computed([(parent, 6)])
    child = room.sequence(PROMPT[:6])

    assert not room.blocks.try_fork(parent, child)

    assert child.block_table == []
    room.blocks.release(parent)
    room.cache.check_invariants()


def test_another_salt_finds_nothing() -> None:
    room = Room()
    room.leave_in_cache(PROMPT)
    sequence = room.sequence(PROMPT, cache_salt="mine")

    assert room.blocks.try_reserve(sequence, 0)
    assert sequence.num_computed_tokens == 0
    room.blocks.on_computed([(sequence, len(PROMPT))])
    room.blocks.release(sequence)

    again = room.sequence(PROMPT, cache_salt="mine")
    assert room.blocks.try_reserve(again, 0)
    assert again.num_computed_tokens > 0


def test_a_prompt_whose_logprobs_are_wanted_is_computed_as_a_whole() -> None:
    room = Room()
    room.leave_in_cache(PROMPT)
    sequence = room.sequence(PROMPT, num_prompt_logprobs=0)

    assert room.blocks.try_reserve(sequence, 0)
    assert sequence.num_computed_tokens == 0

    answering = room.sequence(PROMPT, answer=[1], num_prompt_logprobs=0)  # preempted: they have been told
    room.blocks.release(sequence)
    assert room.blocks.try_reserve(answering, 0)
    assert answering.num_computed_tokens > 0
