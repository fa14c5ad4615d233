"""KV on disk survives the server: what it finds again it need not compute, and the answer is the same to the token."""

from pathlib import Path

import pytest
from tests.live_process import StartCommand
from tests.live_server import LiveServer, Serving, eventually
from tests.modeled_answers import expected_text, make_prompt

from diptych.frontend.text.tokenizer import Tokenizer

STORY = (
    "The lighthouse keeper wrote down every ship that passed, its flag, its course and the weather of the day. " * 12
)
BLOCK_SIZE = 32


def wait_until_stored(server: LiveServer, num_blocks: int) -> None:
    def num_stored() -> int:
        return int(server.worker("decode-0")["cache"]["tiers"][0]["num_stored_blocks"])

    eventually(lambda: num_stored() >= num_blocks, f"{num_blocks} stored")


@pytest.mark.slow
def test_the_real_model_goes_on_after_a_restart_as_if_nothing_had_happened(serving: Serving, tmp_path: Path) -> None:
    settings = {"disk_kv_bytes": 10**9, "disk_kv_dir": tmp_path / "kv", "kv_checksums": True}
    with serving(**settings) as server:
        cold = server.complete(STORY, max_tokens=48)
        assert cold.num_cached_tokens == 0
        num_blocks = (cold.num_prompt_tokens + 47) // BLOCK_SIZE
        # Not all need be stored by now: an ending worker does what is left.
        wait_until_stored(server, 1)
        server.wait_until_idle()
    with serving(**settings) as server:
        eventually(lambda: server.worker("decode-0")["cache"]["tiers"][0]["num_blocks"] >= num_blocks, "found again")
        warm = server.complete(STORY, max_tokens=48)
        record = server.records()[-1]
        assert warm.text == cold.text
        assert warm.num_cached_tokens == record["num_loaded_tokens"]
        assert warm.num_prompt_tokens - warm.num_cached_tokens <= BLOCK_SIZE + 1
        tier = server.worker("decode-0")["cache"]["tiers"][0]
        assert (tier["num_corrupt_blocks"], tier["num_missing_blocks"], tier["num_failures"]) == (0, 0, 0)
        for path in (tmp_path / "kv").rglob("*"):
            if len(path.name) == BLOCK_SIZE:
                content = path.read_bytes()
                path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        server.wait_until_idle()
    with serving(**settings) as server:
        assert server.complete(STORY, max_tokens=48).text == cold.text, "a damaged block is computed anew"


@pytest.mark.slow
def test_the_command_line_tells_what_is_held_and_clears_it(
    start_command: StartCommand, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    folder = str(tmp_path / "kv")
    arguments = ("serve", "--port", "0", "--engine", "modeled", "--kv-bytes", "2MB", "--no-adaptive")
    command = start_command(*arguments, "--disk-kv-bytes", "50MB", "--disk-kv-dir", folder)
    server = command.wait_for_server()
    assert f"up to 0.05 GB of KV are kept in {folder}" in command.stderr
    prompt = make_prompt(320, 1)
    assert server.complete(prompt).text == expected_text(tokenizer, prompt, 16)
    assert server.complete(prompt).num_cached_tokens == 288
    wait_until_stored(server, 10)

    shown = start_command("cache", "--url", server.url)
    assert shown.wait_for_exit() == 0, shown.stderr
    assert "decode-0" in shown.stdout
    assert "45%" in shown.stdout, "288 of 640 tokens were found in memory"
    status = start_command("status", "--url", server.url)
    assert status.wait_for_exit() == 0, status.stderr
    assert "45%" in status.stdout

    in_use = start_command("cache", "clear", "--disk-kv-dir", folder)
    assert in_use.wait_for_exit() == 0
    assert "removed 0 files" in in_use.stdout
    command.close()
    cleared = start_command("cache", "clear", "--disk-kv-dir", folder)
    assert cleared.wait_for_exit() == 0
    assert "removed 10 files" in cleared.stdout
    assert list(Path(folder).iterdir()) == []
