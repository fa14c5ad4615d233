"""Blocks go down before they are evicted and come up when that is sooner; answers are right whatever happens."""

from typing import Any

import pytest
from tests.worker.role_cluster import Heard, RoleCluster, start_roles
from tests.worker.scripted_tier import ScriptedTier

from diptych.core.events import Lifecycle
from diptych.policy.promotion import ASK_PATIENCE_S
from diptych.worker.demotion import BUSY_SHARE
from diptych.worker.sequence import SequenceState

STORY = [(7 * number) % 900 for number in range(200)]
OTHER = [(11 * number + 5) % 900 for number in range(200)]


def finish(cluster: RoleCluster) -> None:
    cluster.run()
    cluster.check_answers()
    cluster.check_idle()


def asleep(num_blocks: int = 7, **changes: Any) -> RoleCluster:
    """Return a cluster in which `STORY` is below and in nobody's blocks any more."""
    cluster = start_roles(has_tier=True, num_blocks=num_blocks, **changes)
    for prompt in (STORY, OTHER):
        cluster.submit(prompt, 4)
        finish(cluster)
    return cluster


def until_loading(cluster: RoleCluster, heard: Heard) -> None:
    cluster.deliver_all()
    assert cluster.workers["decode-0"].decode.roster.find(heard.request.request_id)[0].state is SequenceState.LOADING


def test_what_was_evicted_comes_up_again_and_only_the_rest_is_computed() -> None:
    cluster = asleep()
    heard = cluster.submit([*STORY[:100], 1, 2, 3], 6)
    until_loading(cluster, heard)
    assert not cluster.step("prefill-0"), "a prompt is granted only when it is known what must be read"
    assert [loading.num_found_tokens for loading in heard.loading] == [96], "the router need not wait to hear of it"
    finish(cluster)
    assert (heard.finished.num_cached_tokens, heard.finished.num_loaded_tokens) == (96, 96)
    assert heard.started[0].num_loaded_tokens == 96
    assert heard.finished.timeline[Lifecycle.RESERVED] <= heard.finished.timeline[Lifecycle.LOADED]

    again = cluster.submit([*STORY[:100], 1, 2, 9], 6)
    finish(cluster)
    assert (again.finished.num_cached_tokens, again.finished.num_loaded_tokens) == (96, 0), "it is in memory now"


def test_a_part_in_memory_and_the_next_below() -> None:
    cluster = asleep(num_blocks=12)
    heard = cluster.submit(STORY, 4)
    finish(cluster)
    use = cluster.workers["decode-0"].decode.roster.cache_use
    assert heard.finished.num_loaded_tokens > 0
    assert [loading.num_found_tokens for loading in heard.loading] == [192], "in memory and below"
    assert heard.finished.num_cached_tokens == 192
    assert use.num_memory_tokens + use.num_loaded_tokens == 192
    assert use.num_asked_tokens == 600


def until_asking(cluster: RoleCluster, prompt: list[int], **changes: Any) -> tuple[Heard, ScriptedTier]:
    """Submit a prompt of which the tier does not say yet what it has."""
    tier = cluster.workers["decode-0"].tier
    assert tier is not None
    tier.is_slow_to_say = True
    heard = cluster.submit(prompt, 6, **changes)
    until_loading(cluster, heard)
    assert not tier.loadings and not heard.loading
    return heard, tier


def test_what_a_tier_has_may_be_found_out_first() -> None:
    cluster = asleep()
    heard, tier = until_asking(cluster, [*STORY[:100], 1, 2, 3])
    tier.is_slow_to_say = False
    cluster.begin("decode-0")
    assert len(tier.loadings) == 1
    finish(cluster)
    assert [loading.num_found_tokens for loading in heard.loading] == [96]
    assert heard.finished.num_loaded_tokens == 96
    assert cluster.workers["decode-0"].decode.roster.cache_use.num_shared_tokens == 96


def test_nobody_waits_long_for_what_a_tier_does_not_say() -> None:
    cluster = asleep()
    heard, tier = until_asking(cluster, [*STORY[:100], 1, 2, 3])
    tiering = cluster.workers["decode-0"].tiering
    assert tiering is not None
    wait_s = tiering.promotions.next_s() - cluster.clock.now_s()
    assert 0 < wait_s <= 1.001 * ASK_PATIENCE_S
    cluster.clock.sleep(wait_s)
    finish(cluster)
    assert heard.finished.num_loaded_tokens == 0
    assert not tier.loadings and heard.loading == []


def test_a_tier_that_has_nothing_is_no_reason_to_wait_on() -> None:
    cluster = asleep()
    heard, tier = until_asking(cluster, [5, *STORY[:100]])
    tier.is_slow_to_say = False
    finish(cluster)
    assert heard.finished.num_loaded_tokens == 0


def test_what_is_sooner_computed_in_any_case_is_not_asked_for() -> None:
    cluster = asleep()
    tier = cluster.workers["decode-0"].tier
    assert tier is not None
    tier.is_slow_to_say, tier.load_s = True, 1000.0
    heard = cluster.submit([*STORY[:100], 1, 2, 3], 6)
    finish(cluster)
    assert heard.finished.num_loaded_tokens == 0


@pytest.mark.parametrize("how", ["abort", "deadline"])
def test_who_ends_while_a_tier_finds_out_frees_its_blocks_at_once(how: str) -> None:
    cluster = asleep()
    heard, tier = until_asking(cluster, [*STORY[:100], 1, 2, 3], timeout_s=0.01 if how == "deadline" else 1e4)
    if how == "abort":
        cluster.abort(heard)
        cluster.deliver_all()
    else:
        cluster.clock.sleep(0.02)
        cluster.begin("decode-0")
    cache = cluster.workers["decode-0"].decode.blocks.cache
    assert heard.ends
    assert cache.num_available_blocks == cache.num_blocks
    tier.is_slow_to_say = False
    finish(cluster)


def test_others_go_on_while_blocks_are_loaded() -> None:
    cluster = asleep()
    waiting = cluster.submit([*STORY[:64], 1, 2, 3], 4)
    until_loading(cluster, waiting)
    quick = cluster.submit([1, 2, 3], 4)
    for _ in range(20):
        cluster.deliver_all()
        cluster.step("decode-0")
    assert quick.finished and not waiting.tokens
    finish(cluster)


@pytest.mark.parametrize("num_loaded", range(4))
@pytest.mark.parametrize("how", ["abort", "deadline"])
def test_blocks_of_an_ended_loading_stay_until_the_tier_lets_go(num_loaded: int, how: str) -> None:
    cluster = asleep()
    heard = cluster.submit([*STORY[:100], 1, 2, 3], 6, timeout_s=0.01 if how == "deadline" else 1e4)
    until_loading(cluster, heard)
    for _ in range(num_loaded):
        cluster.load("decode-0")
    cache = cluster.workers["decode-0"].decode.blocks.cache
    if how == "abort":
        cluster.abort(heard)
        cluster.deliver_all()
    else:
        cluster.clock.sleep(0.02)
        cluster.begin("decode-0")
    assert heard.ends, "the client need not wait for the disk"
    assert cache.num_available_blocks == cache.num_blocks - 4
    other = cluster.submit(OTHER[:100], 4)
    cluster.deliver_all()
    assert cluster.workers["decode-0"].decode.roster.find(other.request.request_id)[0].block_table == []
    finish(cluster)


@pytest.mark.parametrize("num_loaded", range(4))
def test_a_dying_worker_leaves_no_half_loaded_block(num_loaded: int) -> None:
    cluster = asleep()
    heard = cluster.submit([*STORY[:100], 1, 2, 3], 6)
    until_loading(cluster, heard)
    for _ in range(num_loaded):
        cluster.load("decode-0")
    cluster.kill("decode-0")
    cluster.revive("decode-0")
    cluster.migrate(heard, "decode-0", "decode-0", prefill="prefill-0")
    finish(cluster)
    assert heard.finished


def test_what_is_lost_below_is_computed() -> None:
    cluster = asleep()
    heard = cluster.submit([*STORY[:100], 1, 2, 3], 6)
    until_loading(cluster, heard)
    cluster.load("decode-0")
    cluster.shelf.blocks.clear()
    finish(cluster)
    assert (heard.finished.num_cached_tokens, heard.finished.num_loaded_tokens) == (32, 32)


def test_a_load_that_takes_too_long_is_given_up() -> None:
    cluster = asleep()
    heard = cluster.submit([*STORY[:100], 1, 2, 3], 6)
    until_loading(cluster, heard)
    worker = cluster.workers["decode-0"]
    assert worker.tiering is not None and worker.tier is not None
    cluster.clock.sleep(worker.tiering.promotions.next_s() - cluster.clock.now_s())
    (loading,) = worker.tier.loadings
    cluster.begin("decode-0")
    assert loading.is_given_up
    finish(cluster)


def test_what_is_sooner_computed_is_not_loaded() -> None:
    cluster = asleep()
    worker = cluster.workers["decode-0"]
    assert worker.tiering is not None and worker.tier is not None
    worker.tier.load_s = 1000.0
    heard = cluster.submit([*STORY[:100], 1, 2, 3], 6)
    finish(cluster)
    assert heard.finished.num_loaded_tokens == 0
    assert heard.loading == []
    assert worker.tiering.promotions.num_declined == 1


@pytest.mark.parametrize("num_more", [0, 1, 2])
def test_of_a_prompt_never_a_single_token_is_computed(num_more: int) -> None:
    cluster = asleep()
    heard = cluster.submit(STORY[: 96 + num_more], 4)
    finish(cluster)
    assert heard.finished.num_loaded_tokens == (96 if num_more == 2 else 64)


def test_another_salt_finds_nothing() -> None:
    cluster = asleep()
    heard = cluster.submit(STORY, 4, cache_salt="other")
    finish(cluster)
    assert heard.finished.num_cached_tokens == 0


def test_log_probabilities_of_a_prompt_are_computed() -> None:
    cluster = asleep()
    heard = cluster.submit(STORY, 4, num_prompt_logprobs=1)
    finish(cluster)
    assert heard.finished.num_cached_tokens == 0


def test_what_finds_no_room_below_is_lost_and_counted() -> None:
    cluster = start_roles(has_tier=True, num_blocks=8)
    cluster.shelf.is_full = True
    for prompt in (STORY, OTHER, STORY):
        heard = cluster.submit(prompt, 4)
        finish(cluster)
    assert heard.finished.num_cached_tokens < 192
    cluster.shelf.is_full = False
    tiering = cluster.workers["decode-0"].tiering
    assert tiering is not None
    tiering.on_turn(is_busy=False)
    assert tiering.num_lost_blocks > 0
    assert tiering.num_waiting_blocks == 0
    assert cluster.shelf.blocks, "what is still in memory goes down"


def test_beside_work_only_so_much_time_is_spent_on_storing() -> None:
    cluster = start_roles(has_tier=True)
    worker = cluster.workers["decode-0"]
    assert worker.tiering is not None and worker.tier is not None
    cluster.shelf.is_full = True
    cluster.submit(STORY, 4)
    finish(cluster)
    cluster.shelf.is_full = False
    worker.tier.store_cost_s = 0.003
    tiering = worker.tiering
    for _ in range(5):
        tiering.on_turn(is_busy=True)
    assert len(cluster.shelf.blocks) == 1
    cluster.clock.sleep(0.003 / BUSY_SHARE)
    tiering.on_turn(is_busy=True)
    assert len(cluster.shelf.blocks) == 2
    tiering.on_turn(is_busy=False)
    assert len(cluster.shelf.blocks) == 6


def test_a_successor_stores_what_it_finds() -> None:
    cluster = start_roles(has_tier=True)
    cluster.shelf.is_full = True
    cluster.submit(STORY, 4)
    finish(cluster)
    cluster.kill("decode-0")
    cluster.revive("decode-0")
    cluster.shelf.is_full = False
    cluster.begin("decode-0")
    assert len(cluster.shelf.blocks) == 6
