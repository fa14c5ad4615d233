"""Several tiers as one: each block comes from the nearest that has it, and what is behind a gap is of no use."""

import pytest
from tests.tiers.stored_blocks import content_of, hash_of
from tests.worker.scripted_tier import ScriptedTier, Shelf

from diptych.core.cache_status import TierKind
from diptych.tiers.base import Target
from diptych.tiers.chain import ChainLoading, TierChain


class NearTier(ScriptedTier):
    """The first of two."""

    kind = TierKind.DISK


class Chain:
    """Two tiers and what they hold."""

    def __init__(self, near: list[int], far: list[int]) -> None:
        self.near, self.far = (
            kind(Shelf({hash_of(number): content_of(number) for number in numbers}))
            for kind, numbers in ((NearTier, near), (ScriptedTier, far))
        )
        self.tiers = TierChain([self.near, self.far])

    def runs(self, num_blocks: int) -> list[tuple[TierKind, int]] | None:
        plan = self.tiers.try_plan([hash_of(number) for number in range(num_blocks)])
        return None if plan is None else [(run.tier.kind, run.num_blocks) for run in plan.runs]

    def load(self, num_blocks: int) -> tuple[ChainLoading, list[bytearray]]:
        blocks = [bytearray(len(content_of(0))) for _ in range(num_blocks)]
        plan = self.tiers.plan_known([hash_of(number) for number in range(num_blocks)])
        targets = [Target(hash_of(number), [memoryview(block)]) for number, block in enumerate(blocks)]
        return plan.load(targets), blocks

    def work(self) -> None:
        while self.near.work() | self.far.work():
            pass


def test_each_block_comes_from_the_nearest_tier_that_has_it() -> None:
    chain = Chain(near=[0, 1, 4], far=[1, 2, 3, 6])
    assert chain.runs(7) == [(TierKind.DISK, 2), (TierKind.SHARED, 2), (TierKind.DISK, 1)]
    loading, blocks = chain.load(5)
    assert (loading.num_loaded, loading.is_over) == (0, False)
    chain.work()
    assert (loading.num_loaded, loading.is_over) == (5, True)
    assert [bytes(block) for block in blocks] == [content_of(number) for number in range(5)]
    assert (loading.num_loaded_from(TierKind.DISK), loading.num_loaded_from(TierKind.SHARED)) == (3, 2)


def test_nothing_is_known_until_each_tier_that_matters_has_said_what_it_has() -> None:
    chain = Chain(near=[0, 1], far=[2])
    chain.far.is_slow_to_say = True
    assert chain.runs(2) == [(TierKind.DISK, 2)], "it does not matter here"
    assert chain.runs(3) is None
    known = chain.tiers.plan_known([hash_of(number) for number in range(3)])
    assert [run.num_blocks for run in known.runs] == [2], "who does not wait for it loads what is near"
    chain.far.is_slow_to_say = False
    assert chain.runs(3) == [(TierKind.DISK, 2), (TierKind.SHARED, 1)]
    assert Chain([], []).runs(3) == []


def test_what_is_behind_a_gap_is_not_counted_and_ends() -> None:
    chain = Chain(near=[0, 1], far=[2, 3])
    loading, _ = chain.load(4)
    chain.near.shelf.blocks.pop(hash_of(1))
    while chain.near.work():
        pass
    assert not loading.is_over, "the other tier may still write"
    chain.far.work()
    assert loading.is_over
    assert loading.num_loaded == 1
    assert loading.num_loaded_from(TierKind.SHARED) == 0


@pytest.mark.parametrize("how", ["cancel", "give_up"])
def test_an_end_is_one_for_all_tiers(how: str) -> None:
    chain = Chain(near=[0], far=[1])
    loading, _ = chain.load(2)
    getattr(loading, how)()
    parts = [*chain.near.loadings, *chain.far.loadings]
    assert [part.is_given_up for part in parts] == [how == "give_up"] * 2
    chain.work()
    assert loading.is_over


def test_tiers_load_at_the_same_time() -> None:
    chain = Chain(near=[0, 2], far=[1])
    chain.near.load_s, chain.far.load_s = 0.25, 2.0
    plan = chain.tiers.plan_known([hash_of(number) for number in range(3)])
    assert plan.predict_load_s() == 2.0
    assert plan.without_last_run().without_last_run().predict_load_s() == 0.25
    assert chain.tiers.predict_best_s(3) == 0.25
