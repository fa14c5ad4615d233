"""Two servers, as two machines would be, and a Mooncake Store: one loads what the other has computed, or computes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.live_process import StartCommand
from tests.live_server import LiveServer, Serving, eventually
from tests.modeled_answers import expected_text, make_prompt
from tests.mooncake_store import MooncakeStore, mooncake_store

from diptych.frontend.text.tokenizer import Tokenizer

STORY = (
    "The lighthouse keeper wrote down every ship that passed, its flag, its course and the weather of the day. " * 12
)
BLOCK_SIZE = 32
PROMPT_TOKENS, LOADED_TOKENS = 320, 288
NUM_TOKENS = 16


@pytest.fixture
def store() -> Iterator[MooncakeStore]:
    with mooncake_store(1) as store:
        yield store


def tier(server: LiveServer) -> dict[str, Any]:
    """Return what its decode worker says of the store."""
    (shared,) = [one for one in server.worker("decode-0")["cache"]["tiers"] if one["kind"] == "shared"]
    return dict(shared)


def wait_until(server: LiveServer, state: str) -> None:
    eventually(lambda: tier(server)["state"] == state, f"the store {state}")


def wait_until_stored(server: LiveServer, num_blocks: int) -> None:
    eventually(lambda: tier(server)["num_stored_blocks"] >= num_blocks, f"{num_blocks} blocks stored")


@pytest.mark.slow
def test_what_one_machine_has_computed_another_one_loads(
    serving: Serving, store: MooncakeStore, tokenizer: Tokenizer
) -> None:
    settings = {"engine": "modeled", "modeled_time_scale": 1.0, "kv_store": store.url}
    with serving(**settings) as one, serving(**settings) as other:

        def ask(server: LiveServer, number: int, **more: Any) -> int:
            """Return how many tokens were found, of a right answer."""
            prompt = make_prompt(PROMPT_TOKENS, number)
            answer = server.complete(prompt, max_tokens=NUM_TOKENS, **more)
            assert answer.text == expected_text(tokenizer, prompt, NUM_TOKENS)
            return answer.num_cached_tokens

        for server in (one, other):
            wait_until(server, "ready")
        assert ask(one, 1) == 0
        wait_until_stored(one, PROMPT_TOKENS // BLOCK_SIZE)
        assert ask(other, 1) == LOADED_TOKENS
        assert other.records()[-1]["num_loaded_tokens"] == LOADED_TOKENS
        assert ask(other, 1, cache_salt="another tenant") == 0
        other.wait_until_idle()
        assert other.worker("decode-0")["cache"]["num_shared_tokens"] == LOADED_TOKENS

        assert store.master is not None
        store.master.kill()
        assert [ask(server, number) for number in (2, 3) for server in (one, other)] == [0] * 4
        for server in (one, other):
            wait_until(server, "resting")
        store.start_master()
        for server in (one, other):
            wait_until(server, "ready")
            server.wait_until_idle()
        assert ask(one, 4) == 0
        eventually(lambda: ask(other, 4) > 0, "machines share again")


@pytest.mark.slow
def test_the_real_model_goes_on_with_what_another_machine_has_computed(
    serving: Serving, store: MooncakeStore, tmp_path: Path
) -> None:
    settings = {"kv_store": store.url, "kv_checksums": True}
    with serving(disk_kv_bytes=10**9, disk_kv_dir=tmp_path / "kv", **settings) as one:
        wait_until(one, "ready")
        cold = one.complete(STORY, max_tokens=48)
        assert cold.num_cached_tokens == 0
        wait_until_stored(one, cold.num_prompt_tokens // BLOCK_SIZE)
        one.wait_until_idle()
    with serving(**settings) as other:
        wait_until(other, "ready")
        warm = other.complete(STORY, max_tokens=48)
        assert warm.text == cold.text
        assert warm.num_cached_tokens == other.records()[-1]["num_loaded_tokens"]
        assert warm.num_prompt_tokens - warm.num_cached_tokens <= BLOCK_SIZE + 1
        shared = tier(other)
        assert (shared["num_corrupt_blocks"], shared["num_missing_blocks"], shared["num_failures"]) == (0, 0, 0)


@pytest.mark.slow
def test_a_server_starts_without_the_store_and_says_so(start_command: StartCommand, tokenizer: Tokenizer) -> None:
    with mooncake_store(0, has_master=False) as store:
        arguments = ("serve", "--port", "0", "--engine", "modeled", "--kv-bytes", "2MB", "--no-adaptive")
        command = start_command(*arguments, "--kv-store", store.url)
        server = command.wait_for_server()
        assert f"KV is shared with other machines by the Mooncake Store at {store.address}" in command.stderr
        wait_until(server, "resting")
        eventually(lambda: "the shared store of KV rests" in command.stderr, "the log says so")
        prompt = make_prompt(PROMPT_TOKENS, 1)
        assert server.complete(prompt).text == expected_text(tokenizer, prompt, NUM_TOKENS)
        shown = start_command("cache", "--url", server.url)
        assert shown.wait_for_exit() == 0, shown.stderr
        assert f"Mooncake Store at {store.address}, resting: " in shown.stdout
        command.close()
        command.wait_until_gone()
