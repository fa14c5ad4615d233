"""One line a minute at most, and only if somebody has asked."""

import logging

import pytest

from diptych.core.cache_status import CacheStatus, TierKind, TierState, TierStatus
from diptych.worker.cache_use import LOG_INTERVAL_S, HitLog


def status(num_asked: int, num_memory: int, num_tier: int, tier: TierStatus | None = None) -> CacheStatus:
    return CacheStatus(
        block_bytes=1,
        num_findable_blocks=1,
        num_evicted_blocks=num_asked // 100,
        num_asked_tokens=num_asked,
        num_memory_tokens=num_memory,
        num_tier_tokens=num_tier,
        tiers=() if tier is None else (tier,),
    )


def test_rates_are_those_since_the_last_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log = HitLog("decode-0", 0.0)
    disk = TierStatus(
        kind=TierKind.DISK, name="d", state=TierState.READY, num_blocks=7, used_bytes=2 * 10**9, limit_bytes=3 * 10**9
    )
    log.on_status(status(100, 50, 0, disk), LOG_INTERVAL_S - 1)
    assert not caplog.records
    log.on_status(status(1000, 500, 100, disk), LOG_INTERVAL_S)
    log.on_status(status(1100, 500, 100, disk), LOG_INTERVAL_S + 1)
    log.on_status(status(2000, 750, 600, disk), 2 * LOG_INTERVAL_S)
    log.on_status(status(2000, 750, 600, disk), 3 * LOG_INTERVAL_S)
    first, second = (record.getMessage() for record in caplog.records)
    assert "50% of 1000 prompt tokens in memory and 10% on disk (7 blocks, 2.00 GB" in first
    assert "25% of 1000 prompt tokens in memory and 50% on disk" in second
    assert "evicted 10 blocks" in second


def test_without_a_tier_nothing_is_said_of_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    HitLog("decode-0", 0.0).on_status(status(10, 5, 0), LOG_INTERVAL_S)
    (record,) = caplog.records
    assert record.getMessage() == "decode-0 found 50% of 10 prompt tokens, evicted 0 blocks, lost 0"
