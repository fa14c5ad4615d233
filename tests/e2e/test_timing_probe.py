"""Whether one key can find out by timing what another one has asked."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.live_server import LiveServer
from tests.modeled_answers import make_prompt

import diptych
from diptych.core.api_keys import ApiKey, hash_key
from diptych.frontend.auth.key_file import changing_key_file

NUM_TOKENS = 1000
TIME_SCALE = 0.75
"""Reading the prompt takes seconds then, and finding it in the cache hundredths of one."""


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    file = tmp_path / "keys.toml"
    with changing_key_file(file) as keys:
        for name, salt in (("alice", "salt-of-alice-1"), ("bob", "salt-of-bob-0002"), ("friend", "salt-of-alice-1")):
            keys.append(ApiKey(name=name, hash=hash_key(name), cache_salt=f"{salt}-padded"))
    config = diptych.ServeConfig(
        port=0, engine="modeled", modeled_time_scale=TIME_SCALE, kv_bytes=2_000_000, api_keys=file
    )
    with diptych.serve(config) as server:
        yield server.url


def probe(url: str, key: str, prompt: list[int], **more: str) -> tuple[float, int]:
    """Return how long the first token took, in seconds, and how many of the prompt's were cached."""
    live = LiveServer(url, key)
    begin_s = time.monotonic()
    with live.stream(prompt, max_tokens=2, **more) as stream:
        stream.read(1)
        ttft_s = time.monotonic() - begin_s
        num_cached = stream.read().completion().num_cached_tokens
    live.close()
    return ttft_s, num_cached


@pytest.mark.slow
def test_a_probe_by_another_key_is_as_slow_as_if_nobody_had_asked(url: str) -> None:
    prompt = make_prompt(NUM_TOKENS, 1)
    cold_s, num_cached = probe(url, "alice", prompt)
    assert num_cached == 0
    for more in ({}, {"cache_salt": "alice"}, {"cache_salt": "salt-of-alice-1-padded"}):
        bobs_s, num_cached = probe(url, "bob", make_prompt(NUM_TOKENS, 1), **more)
        assert num_cached == 0
        assert bobs_s > 0.5 * cold_s, "the cached answer would be there in a tenth of the time"
    for key in ("alice", "friend"):
        again_s, num_cached = probe(url, key, prompt)
        assert num_cached >= NUM_TOKENS - 64, "one block may be given back"
        assert again_s < 0.25 * cold_s
