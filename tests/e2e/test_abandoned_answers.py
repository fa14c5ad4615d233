"""A client that hangs up frees its blocks at once, in whatever phase its request is."""

from collections.abc import Iterator

import pytest
from tests.live_server import LiveServer, Serving, eventually
from tests.modeled_answers import expected_text, make_prompt

from diptych.frontend.text.tokenizer import Tokenizer

AT_ONCE_S = 10.0
"""A running step (1 s here), a heartbeat (0.5 s), and patience with a busy machine; whole requests take far longer."""
LONG_PROMPT_TOKENS = 7000
"""23 s and more of prefill."""
LONG_ANSWER_TOKENS = 1000
"""19 s and more of decode."""


@pytest.fixture(scope="module")
def server(serving: Serving) -> Iterator[LiveServer]:
    """One prefill and one decode worker as slow as the real ones, with room for two sequences."""
    with serving(engine="modeled", modeled_time_scale=1, max_num_seqs=2) as live:
        yield live


@pytest.mark.parametrize("stream", [True, False])
def test_while_its_prompt_is_read(server: LiveServer, stream: bool) -> None:
    with server.unanswered(make_prompt(LONG_PROMPT_TOKENS, 1), stream=stream):
        eventually(lambda: server.worker("prefill-0")["num_running"] == 1, "prefill")
        eventually(lambda: server.worker("decode-0")["num_running"] == 1, "blocks held by the decode worker")
    server.wait_until_idle(AT_ONCE_S)
    assert server.records()[-1]["outcome"] == "aborted"


def test_while_it_waits_for_the_prefill_worker(server: LiveServer) -> None:
    with server.unanswered(make_prompt(LONG_PROMPT_TOKENS, 2)):
        with server.unanswered(make_prompt(LONG_PROMPT_TOKENS, 3)):
            eventually(lambda: server.worker("prefill-0")["num_waiting"] == 1, "a queue at the prefill worker")
        eventually(lambda: server.worker("prefill-0")["num_waiting"] == 0, "no queue any more", AT_ONCE_S)
        eventually(lambda: server.worker("decode-0")["num_running"] == 1, "blocks of one request", AT_ONCE_S)
    server.wait_until_idle(AT_ONCE_S)


@pytest.mark.parametrize("stream", [True, False])
def test_while_it_is_answered(server: LiveServer, stream: bool) -> None:
    num_steps = server.worker("decode-0")["num_steps"]
    with server.unanswered(make_prompt(40, 4), max_tokens=LONG_ANSWER_TOKENS, stream=stream):
        eventually(lambda: server.worker("decode-0")["num_steps"] > num_steps + 2, "decode")
    server.wait_until_idle(AT_ONCE_S)
    record = server.records()[-1]
    assert record["outcome"] == "aborted"
    assert 0 < record["num_output_tokens"] < LONG_ANSWER_TOKENS


def test_while_it_waits_for_blocks_and_others_go_on(server: LiveServer, tokenizer: Tokenizer) -> None:
    prompt = make_prompt(40, 5)
    with (
        server.stream(prompt, max_tokens=150) as stream,
        server.unanswered(make_prompt(40, 6), max_tokens=LONG_ANSWER_TOKENS),
    ):
        stream.read(1)
        eventually(lambda: server.worker("decode-0")["num_running"] == 2, "two running answers")
        with server.unanswered(make_prompt(40, 7)):
            eventually(lambda: server.worker("decode-0")["num_waiting"] == 1, "a queue")
        eventually(lambda: server.worker("decode-0")["num_waiting"] == 0, "no queue any more", AT_ONCE_S)
        assert stream.read().completion().text == expected_text(tokenizer, prompt, 150)
    server.wait_until_idle(AT_ONCE_S)


def test_while_its_decode_worker_reads_the_prompt_itself(serving: Serving) -> None:
    with serving(engine="modeled", modeled_time_scale=1, mixed=1) as server:
        with server.unanswered(make_prompt(LONG_PROMPT_TOKENS, 8)):
            eventually(lambda: server.worker("mixed-0")["queued_prefill_tokens"] > 0, "prefill")
        server.wait_until_idle(AT_ONCE_S)


def test_a_request_past_its_deadline_gets_504_and_frees_its_blocks(serving: Serving) -> None:
    with serving(engine="modeled", modeled_time_scale=1, request_timeout_s=0.7) as server:
        response = server.post(make_prompt(LONG_PROMPT_TOKENS, 9))
        assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")
        with server.stream(make_prompt(40, 10), max_tokens=LONG_ANSWER_TOKENS) as stream:
            stream.read()
        assert not stream.is_done
        assert stream.error is not None
        assert stream.error["code"] == "timeout"
        server.wait_until_idle(AT_ONCE_S)
