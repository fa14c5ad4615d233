"""Workers that live and do not hear each other: somebody has deleted a socket. Nobody waits for what cannot come."""

from pathlib import Path

import pytest
from tests.live_server import LiveServer, StartServer
from tests.modeled_answers import expected_text, make_prompt

from diptych.frontend.text.tokenizer import Tokenizer

GRANT_TIMEOUT_S = 1.0


def delete_inbox(server: LiveServer, worker_id: str) -> None:
    """Do what cleaners of temporary folders do. Connections that there are go on."""
    endpoint: str = server.status()["workers"][worker_id]["address"]["endpoint"]
    Path(endpoint.removeprefix("ipc://")).unlink()


def ask_and_check(server: LiveServer, tokenizer: Tokenizer, prompt: list[int]) -> None:
    assert server.complete(prompt).text == expected_text(tokenizer, prompt, 16)


@pytest.mark.slow
def test_a_reader_that_hears_nothing_is_replaced(modeled_server: StartServer, tokenizer: Tokenizer) -> None:
    server = modeled_server(grant_timeout_s=GRANT_TIMEOUT_S)
    before = server.incarnation("prefill-0")
    delete_inbox(server, "prefill-0")
    ask_and_check(server, tokenizer, make_prompt(100, 1))
    server.wait_until_up("prefill-0")
    assert server.incarnation("prefill-0") > before, "it was not ended"
    ask_and_check(server, tokenizer, make_prompt(100, 2))
    assert server.records()[-1]["prefill_worker"] == "prefill-0"
    server.wait_until_idle()


@pytest.mark.slow
def test_an_owner_that_hears_nothing_blames_another_but_once(modeled_server: StartServer, tokenizer: Tokenizer) -> None:
    server = modeled_server(grant_timeout_s=GRANT_TIMEOUT_S)
    lives = {worker: server.incarnation(worker) for worker in ("prefill-0", "decode-0")}
    ask_and_check(server, tokenizer, make_prompt(4, 1))  # the router is connected to it, and the prefill worker is not
    delete_inbox(server, "decode-0")
    ask_and_check(server, tokenizer, make_prompt(100, 2))
    server.wait_until_up("prefill-0")
    assert server.incarnation("prefill-0") > lives["prefill-0"]
    assert server.incarnation("decode-0") == lives["decode-0"]
    ask_and_check(server, tokenizer, make_prompt(100, 3))
    server.wait_until_up("decode-0")
    assert server.incarnation("decode-0") > lives["decode-0"], "its own ears were deaf"
    ask_and_check(server, tokenizer, make_prompt(100, 4))
    server.wait_until_idle()
    assert server.records()[-1]["prefill_worker"] == "prefill-0"
