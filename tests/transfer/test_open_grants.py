"""Grants between machines: nobody gets blocks into which something may still be moving."""

from contextlib import ExitStack

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from diptych.core.errors import TransferRefusedError
from diptych.core.ids import BlockId, WorkerId
from diptych.transfer import open_grants
from diptych.transfer.open_grants import OpenGrants

WRITER = (WorkerId("prefill-0"), 3)
OTHERS = [(WorkerId("prefill-0"), 2), (WorkerId("prefill-1"), 3)]
NUM_BLOCKS = 12


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_grants, "PATIENCE_S", 0.0)


@pytest.mark.parametrize("life", OTHERS)
def test_only_that_life_of_the_writer_may_fill(life: open_grants.Life) -> None:
    grants = OpenGrants()
    grants.open(1, WRITER, [BlockId(1)], [])
    with pytest.raises(TransferRefusedError), grants.filling(1, life, [BlockId(1)]):
        pass
    with grants.filling(1, WRITER, [BlockId(1)]):
        assert grants.is_open(1)


def test_one_move_at_a_time_under_an_epoch() -> None:
    grants = OpenGrants()
    grants.open(1, WRITER, [BlockId(1), BlockId(2)], [])
    first, second = grants.filling(1, WRITER, [BlockId(1)]), grants.filling(1, WRITER, [BlockId(2)])
    with first, pytest.raises(TransferRefusedError), second:
        pass
    with grants.filling(1, WRITER, [BlockId(2)]):
        pass


class GrantLife(RuleBasedStateMachine):
    """An owner that reuses blocks as soon as it may, and writers that come at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.grants = OpenGrants()
        self.free = set(range(NUM_BLOCKS))
        self.open_blocks: dict[int, set[int]] = {}
        self.closing: dict[int, set[int]] = {}
        self.moving: dict[int, tuple[ExitStack, set[int]]] = {}
        self.num_epochs = 0

    @rule(num_blocks=st.integers(1, 6))
    def open(self, num_blocks: int) -> None:
        blocks = set(sorted(self.free)[:num_blocks])
        if not blocks:
            return
        self.free -= blocks
        self.num_epochs += 1
        self.open_blocks[self.num_epochs] = blocks
        self.grants.open(self.num_epochs, WRITER, map(BlockId, blocks), [])

    @precondition(lambda self: self.open_blocks)
    @rule(pick=st.integers(0, 99))
    def close(self, pick: int) -> None:
        epoch = sorted(self.open_blocks)[pick % len(self.open_blocks)]
        self.grants.close(epoch)
        self.closing[epoch] = self.open_blocks.pop(epoch)
        self.reuse()

    def reuse(self) -> None:
        for epoch in [epoch for epoch in self.closing if self.grants.is_quiet(epoch)]:
            self.free |= self.closing.pop(epoch)

    @precondition(lambda self: self.num_epochs)
    @rule(pick=st.integers(0, 99), blocks=st.sets(st.integers(0, NUM_BLOCKS - 1), min_size=1, max_size=3))
    def begin(self, pick: int, blocks: set[int]) -> None:
        epoch = pick % self.num_epochs + 1
        granted = self.open_blocks.get(epoch, set())
        wanted = blocks if pick % 3 == 0 else granted & blocks
        stack = ExitStack()
        is_allowed = epoch in self.open_blocks and epoch not in self.moving and wanted <= granted
        try:
            stack.enter_context(self.grants.filling(epoch, WRITER, sorted(map(BlockId, wanted))))
        except TransferRefusedError:
            assert not is_allowed
        else:
            assert is_allowed
            self.moving[epoch] = (stack, wanted)

    @precondition(lambda self: self.moving)
    @rule(pick=st.integers(0, 99))
    def end(self, pick: int) -> None:
        epoch = sorted(self.moving)[pick % len(self.moving)]
        stack, _ = self.moving.pop(epoch)
        assert self.grants.is_open(epoch) == (epoch in self.open_blocks)
        stack.close()
        self.reuse()

    @invariant()
    def nothing_moves_into_free_blocks(self) -> None:
        moved = [blocks for _, blocks in self.moving.values()]
        assert not any(blocks & self.free for blocks in moved)

    def teardown(self) -> None:
        for epoch in list(self.open_blocks):
            self.grants.close(epoch)
            self.closing[epoch] = self.open_blocks.pop(epoch)
        for stack, _ in self.moving.values():
            stack.close()
        self.reuse()
        assert self.free == set(range(NUM_BLOCKS))


TestGrantLife = GrantLife.TestCase
TestGrantLife.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
