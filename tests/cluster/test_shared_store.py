"""Machines that share a Mooncake Store: one loads what another has computed; without the store they compute."""

from typing import Any

import pytest
from tests.cluster.conftest import MODELED, StartCluster, wait_until_serving
from tests.cluster.hosts import hosts, why_no_namespaces
from tests.live_process import StartCommand
from tests.live_server import LiveServer, eventually
from tests.modeled_answers import expected_text, make_prompt
from tests.mooncake_store import HOST, mooncake_store

from diptych.frontend.text.tokenizer import Tokenizer

PROMPT_TOKENS, LOADED_TOKENS = 320, 288
NUM_TOKENS = 16
HERE, THERE = "decode-0", "rack1.decode-0"


def tier(server: LiveServer, worker: str) -> dict[str, Any]:
    """Return what a worker says of the store."""
    (shared,) = server.worker(worker)["cache"]["tiers"]
    return dict(shared)


def wait_until(server: LiveServer, state: str) -> None:
    for worker in (HERE, THERE):
        eventually(lambda worker=worker: tier(server, worker)["state"] == state, f"{worker}: {state}")  # type: ignore[misc]


@pytest.mark.slow
def test_one_machine_loads_what_another_has_computed_and_both_do_without(
    start_cluster: StartCluster, start_command: StartCommand, tokenizer: Tokenizer
) -> None:
    with hosts("rack1") as (rack,):
        address = HOST if why_no_namespaces() else rack.router_at(1).partition(":")[0]
        with mooncake_store(0, address, has_master=False) as store:
            cluster = start_cluster(*MODELED, "--no-adaptive", "--kv-store", store.url)
            cluster.join(rack)
            server = cluster.server
            wait_until_serving(server, rack.name)

            def ask(number: int, **more: Any) -> int:
                """Return how many tokens were found, of a right answer."""
                prompt = make_prompt(PROMPT_TOKENS, number)
                answer = server.complete(prompt, max_tokens=NUM_TOKENS, **more)
                assert answer.text == expected_text(tokenizer, prompt, NUM_TOKENS)
                return answer.num_cached_tokens

            wait_until(server, "resting")
            assert f"shared with other machines by the Mooncake Store at {store.address}" in cluster.head.stderr
            assert "the shared store of KV rests" in cluster.head.stderr
            assert ask(0) == 0
            store.start_master()
            store.add_machine()
            wait_until(server, "ready")

            assert start_command("drain", THERE, "--url", server.url).wait_for_exit() == 0
            assert ask(1) == 0
            # What it finds of the earlier prompt to store was refused while the store had no memory.
            num_blocks = PROMPT_TOKENS // 32
            eventually(lambda: tier(server, HERE)["num_stored_blocks"] >= num_blocks, "stored")
            assert start_command("restart", THERE, "--url", server.url).wait_for_exit() == 0
            wait_until_serving(server, rack.name)
            wait_until(server, "ready")
            assert start_command("drain", HERE, "--url", server.url).wait_for_exit() == 0
            assert ask(1) == LOADED_TOKENS
            record = server.records()[-1]
            assert (record["decode_worker"], record["num_loaded_tokens"]) == (THERE, LOADED_TOKENS)
            assert ask(1, cache_salt="another tenant") == 0
            server.wait_until_idle()
            assert server.worker(THERE)["cache"]["num_shared_tokens"] == LOADED_TOKENS
            shown = start_command("cache", "--url", server.url)
            assert shown.wait_for_exit() == 0, shown.stderr
            assert f"{THERE}: Mooncake Store at {store.address}, ready" in shown.stdout

            assert store.master is not None
            store.master.kill()
            assert [ask(number) for number in (2, 3)] == [0, 0]
            eventually(lambda: tier(server, THERE)["state"] == "resting", "noticed")
            assert start_command("restart", HERE, "--url", server.url).wait_for_exit() == 0
            cluster.end_in_order()
