"""Two servers and a Mooncake Store: the second goes on with what the first has computed, to the same token."""

from pathlib import Path
from typing import Any

import pytest
from tests.live_server import LiveServer, Serving, eventually
from tests.mooncake_store import mooncake_store

STORY = (
    "The lighthouse keeper wrote down every ship that passed, its flag, its course and the weather of the day. " * 12
)
BLOCK_SIZE = 32
NUM_TRIES = 3
"""A server to which the store is too slow, on a busy machine, computes all of it."""


def tier(server: LiveServer) -> dict[str, Any]:
    """Return what its decode worker says of the store."""
    (shared,) = [one for one in server.worker("decode-0")["cache"]["tiers"] if one["kind"] == "shared"]
    return dict(shared)


@pytest.mark.slow
def test_the_real_model_goes_on_with_what_another_machine_has_computed(serving: Serving, tmp_path: Path) -> None:
    with mooncake_store() as store:
        settings = {"kv_store": store.url, "kv_checksums": True}
        with serving(disk_kv_bytes=10**9, disk_kv_dir=tmp_path / "kv", **settings) as one:
            cold = one.complete(STORY, max_tokens=48)
            assert cold.num_cached_tokens == 0
            num_blocks = cold.num_prompt_tokens // BLOCK_SIZE
            eventually(lambda: tier(one)["num_stored_blocks"] >= num_blocks, f"{num_blocks} blocks stored")
            one.wait_until_idle()
        for _ in range(NUM_TRIES):
            with serving(**settings) as other:
                eventually(lambda: tier(other)["state"] == "ready", "the store ready")
                warm = other.complete(STORY, max_tokens=48)
                assert warm.text == cold.text
                assert warm.num_cached_tokens == other.records()[-1]["num_loaded_tokens"]
                shared = tier(other)
                assert (shared["num_corrupt_blocks"], shared["num_missing_blocks"]) == (0, 0)
            if warm.num_cached_tokens:
                break
        assert warm.num_prompt_tokens - warm.num_cached_tokens <= BLOCK_SIZE + 1
        assert shared["num_failures"] == 0
