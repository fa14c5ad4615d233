"""What `diptych status` and `diptych cache` print can be read in a terminal of 80 columns."""

from io import StringIO
from typing import Any

import msgspec
import pytest
from rich.console import Console
from rich.table import Table

from diptych.cli.cache import memory_table, tier_table
from diptych.cli.cluster import nodes_table
from diptych.cli.status import workers_table
from diptych.core.cache_status import CacheStatus, TierKind, TierState, TierStatus
from diptych.core.ids import WorkerId
from diptych.core.messages import PeerAddress, Role, WorkerState, WorkerStatus
from diptych.core.service import ClusterStatus, NodeInfo, WorkerInfo

NUM_BLOCKS = 43210
TIER = TierStatus(
    kind=TierKind.DISK,
    name="disk, past the page cache",
    state=TierState.READY,
    num_blocks=NUM_BLOCKS,
    used_bytes=19_870_000_000,
    limit_bytes=20_000_000_000,
    num_stored_blocks=98765,
    num_loaded_blocks=87654,
)
CACHE = CacheStatus(
    block_bytes=737_280,
    num_findable_blocks=NUM_BLOCKS,
    num_evicted_blocks=123456,
    num_asked_tokens=12_345_678,
    num_memory_tokens=12_000_000,
    num_tier_tokens=300_000,
    num_lost_blocks=4321,
    tiers=(TIER,),
)


def worker(role: Role, state: WorkerState) -> WorkerInfo:
    """Return a worker of a large server after a long time."""
    is_owner = role is not Role.PREFILL
    status = WorkerStatus(
        state=state,
        pid=4_194_303,
        cores=[*range(16, 32), *range(48, 64)],
        engine="openvino bf16 KV",
        num_blocks=NUM_BLOCKS if is_owner else 0,
        num_free_blocks=12345 if is_owner else 0,
        num_cached_blocks=30000 if is_owner else 0,
        num_running=128,
        num_waiting=256,
        queued_prefill_tokens=100_000,
        prefill_tokens_per_s=1e4,
        decode_step_s=0.02,
        memory_bytes=1_234_000_000,
        num_steps=10**6,
        cache=CACHE if is_owner else None,
    )
    return WorkerInfo(
        role=role, address=PeerAddress(WorkerId(role), "", 1), status=status, heartbeat_age_s=0.1, num_assigned=3
    )


@pytest.fixture
def status() -> dict[str, Any]:
    cluster = ClusterStatus(
        health="ready",
        model="a-model",
        max_model_len=8192,
        num_requests=384,
        workers={
            WorkerId("prefill-10"): worker(Role.PREFILL, WorkerState.READY),
            WorkerId("decode-10"): worker(Role.DECODE, WorkerState.DRAINING),
        },
    )
    built: dict[str, Any] = msgspec.to_builtins(cluster)
    return built


def printed(table: Table, width: int = 80) -> list[str]:
    """Return the lines that so many columns show, with single spaces."""
    console = Console(file=StringIO(), width=width)
    console.print(table)
    assert isinstance(console.file, StringIO)
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


def test_the_workers_fit_into_80_columns(status: dict[str, Any]) -> None:
    head, prefill, decode = printed(workers_table(status))
    assert head == "worker pid cores state run wait blocks free cached hits MB"
    assert prefill == "prefill-10 4194303 16-31,48-63 ready 128 256 0 0 0 - 1234"
    assert decode == "decode-10 4194303 16-31,48-63 draining 128 256 43210 12345 30000 100% 1234"


def test_machines_show_what_the_width_allows(status: dict[str, Any]) -> None:
    far = status["workers"]["decode-10"]
    far["address"]["node"] = "rack2"
    node = NodeInfo(
        state="joined",
        address="192.168.100.200",
        key_name="node",
        version="0.1.0",
        engine="openvino bf16 KV",
        num_cores=64,
        segment_bytes=64_000_000_000,
        workers=[WorkerId("rack2.decode-10")],
        joined_for_s=1.0,
        silent_s=0.2,
        round_trip_s=0.0125,
        clock_offset_s=-3600.0,
    )
    status["nodes"] = {"rack2": msgspec.to_builtins(node)}
    head, own, rack2 = printed(nodes_table(status, 200), 200)
    assert head == "node state address version engine cores workers requests KV silent away clock"
    assert own == "head ready - - - 32 1/1 3 - - - -"
    assert rack2 == "rack2 joined 192.168.100.200 0.1.0 openvino bf16 KV 64 0/1 3 64.00 GB 0.2 s 12.50 ms -3600.000 s"
    head, _, rack2 = printed(nodes_table(status, 80))
    assert head == "node state address cores workers requests silent away clock"
    assert rack2 == "rack2 joined 192.168.100.200 64 0/1 3 0.2 s 12.50 ms -3600.000 s"
    head, *_ = printed(nodes_table(status, 70), 70)
    assert head == "node state address workers requests silent clock"


def test_the_caches_fit_into_80_columns() -> None:
    caches: dict[str, Any] = {"prefill-10": msgspec.to_builtins(CACHE)}
    head, row = printed(memory_table(caches))
    assert head == "worker blocks cached bytes asked tokens in memory below evicted lost"
    assert row == "prefill-10 43210 31.86 GB 12345678 97% 2% 123456 4321"
    shared = msgspec.to_builtins(TierStatus(kind=TierKind.SHARED, name="Mooncake Store", state=TierState.READY))
    rows = [("prefill-10", caches["prefill-10"]["tiers"][0]), ("prefill-10", shared)]
    head, row, second = printed(tier_table(rows))
    assert head == "worker tier blocks bytes limit stored loaded evicted gone bad failed"
    assert row == "prefill-10 disk 43210 19.87 GB 20.00 GB 98765 87654 0 0 0 0"
    assert second == "prefill-10 shared 0 - - 0 0 0 0 0 0"
