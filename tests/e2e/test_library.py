"""`diptych.serve` in a program of one's own."""

import socket

import httpx
import pytest
from tests.live_server import Serving
from tests.modeled_answers import expected_text, make_prompt

import diptych
from diptych.frontend.text.tokenizer import Tokenizer

CONFIG = diptych.ServeConfig(port=0, engine="modeled", modeled_time_scale=0, kv_bytes=2_000_000)


@pytest.mark.slow
def test_two_servers_at_once_do_not_meet(serving: Serving, tokenizer: Tokenizer) -> None:
    with serving(engine="modeled") as first, serving(engine="modeled", mixed=1) as second:
        assert first.url != second.url
        assert set(first.status()["workers"]) == {"decode-0", "prefill-0"}
        assert set(second.status()["workers"]) == {"mixed-0"}
        prompt = make_prompt(70, 1)
        for server in (first, second):
            answers = server.complete_all([prompt, make_prompt(70, 2)], max_tokens=30)
            assert [answer.text for answer in answers] == [
                expected_text(tokenizer, prompt, 30),
                expected_text(tokenizer, make_prompt(70, 2), 30),
            ]
            assert answers[0].num_cached_tokens == 0, "found in the other server's cache"
            server.wait_until_idle()


def test_the_server_ends_with_its_block() -> None:
    with diptych.serve(CONFIG) as server:
        assert server.status()["health"] == "ready"
        assert not server.wait(timeout_s=0)
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url)


def test_the_server_is_killed_if_its_block_fails() -> None:
    with pytest.raises(ZeroDivisionError), diptych.serve(CONFIG) as server:
        raise ZeroDivisionError
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url)


def test_a_start_that_fails_says_why() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = CONFIG.model_copy(update={"port": taken.getsockname()[1]})
        with pytest.raises(diptych.LaunchError, match=r"port \d+ on 127.0.0.1 is taken; choose another with --port"):
            diptych.serve(config)


def test_an_unknown_model_says_what_to_do() -> None:
    with pytest.raises(diptych.ModelError, match="no-such-model"):
        diptych.serve(CONFIG.model_copy(update={"model": "no-such-model"}))
