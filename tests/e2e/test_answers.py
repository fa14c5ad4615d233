"""Answers over HTTP from real processes, from an engine whose right answers are known and betray mistakes with KV."""

from tests.live_server import LiveServer, StartServer
from tests.modeled_answers import VOCAB_SIZE, expected_text, make_prompt

from diptych.core.events import Lifecycle
from diptych.engine.modeled_engine import BLOCK_SIZE_TOKENS, expected_tokens
from diptych.frontend.text.tokenizer import Tokenizer

NOT_OF_ALL = {Lifecycle.PREEMPTED, Lifecycle.MIGRATED, Lifecycle.LOADED}
"""Events that only some requests have."""


def test_a_prompt_is_handed_over_and_answered_right(shared_modeled_server: LiveServer, tokenizer: Tokenizer) -> None:
    server = shared_modeled_server
    for num_tokens in (1, 9, 31, 32, 33, 256, 257, 700):
        prompt = make_prompt(num_tokens, num_tokens)
        answer = server.complete(prompt, max_tokens=100)
        assert answer.text == expected_text(tokenizer, prompt, 100), f"prompt of {num_tokens} tokens"
        assert (answer.num_prompt_tokens, answer.num_output_tokens) == (num_tokens, 100)
        assert answer.finish_reason == "length"
    last = server.records()[-1]
    assert last["prefill_worker"] == "prefill-0", "the prompt was not read by the prefill worker"
    assert Lifecycle.GRANTED in last["timeline"]
    server.wait_until_idle()


def test_64_streams_at_once_are_all_right(shared_modeled_server: LiveServer, tokenizer: Tokenizer) -> None:
    server = shared_modeled_server
    prompts = [make_prompt(20 + 7 * index, 1000 + index) for index in range(64)]
    answers = server.complete_all(prompts, max_tokens=24)
    assert [answer.text for answer in answers] == [expected_text(tokenizer, prompt, 24) for prompt in prompts]
    server.wait_until_idle()


def test_the_second_turn_finds_the_first_in_the_cache(shared_modeled_server: LiveServer, tokenizer: Tokenizer) -> None:
    server = shared_modeled_server
    first = make_prompt(50, 2000)
    assert server.complete(first, max_tokens=40).num_cached_tokens == 0
    second = first + expected_tokens(first, 40, VOCAB_SIZE) + make_prompt(20, 2001)
    answer = server.complete(second, max_tokens=40)
    # The last token of an answer is never computed: 89 tokens are, of which whole blocks can be found.
    assert answer.num_cached_tokens == (50 + 40 - 1) // BLOCK_SIZE_TOKENS * BLOCK_SIZE_TOKENS == 64
    assert answer.text == expected_text(tokenizer, second, 40)
    server.wait_until_idle()


def test_a_whole_prompt_in_the_cache_is_still_answered_right(
    shared_modeled_server: LiveServer, tokenizer: Tokenizer
) -> None:
    # At least one token must be computed for its logits; a hit that would leave exactly one gives a block back.
    for num_tokens, num_cached_tokens in ((64, 32), (65, 32), (66, 64)):
        prompt = make_prompt(num_tokens, 3000 + num_tokens)
        for expected_cached_tokens in (0, num_cached_tokens):
            answer = shared_modeled_server.complete(prompt)
            assert (answer.text, answer.num_cached_tokens) == (
                expected_text(tokenizer, prompt, 16),
                expected_cached_tokens,
            )


def test_a_prompt_too_long_gets_400(shared_modeled_server: LiveServer) -> None:
    server = shared_modeled_server
    max_model_len = server.status()["max_model_len"]
    num_records = len(server.records())
    for num_tokens, status in ((max_model_len + 1, 400), (max_model_len, 400), (max_model_len - 1, 200)):
        response = server.post(make_prompt(num_tokens, 0), max_tokens=1)
        assert response.status_code == status, response.text
        if status == 400:
            error = response.json()["error"]
            assert error["code"] == "context_length_exceeded"
            assert str(max_model_len) in error["message"]
    text = server.post("so " * 100_000)
    assert (text.status_code, text.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert len(server.records()) == num_records + 1, "a refused prompt must not reach the workers"
    server.wait_until_idle()


def test_same_seed_same_answer_whatever_the_path(
    shared_modeled_server: LiveServer, modeled_server: StartServer
) -> None:
    mixed = modeled_server(mixed=1, chunk_tokens=48, decode_chunk_tokens=20)
    prompts = [make_prompt(num_tokens, 4000 + num_tokens) for num_tokens in (5, 64, 200, 333)]

    def answers(server: LiveServer, seed: int) -> list[str]:
        drawn = server.complete_all(prompts, max_tokens=60, temperature=1, seed=seed)
        return [answer.text for answer in drawn]

    handed_over, from_the_cache, in_mixed_steps = (
        answers(server, 7) for server in (shared_modeled_server, shared_modeled_server, mixed)
    )
    assert handed_over == from_the_cache == in_mixed_steps
    assert answers(shared_modeled_server, 8) != handed_over, "the seed changes nothing: the answers are greedy"
    assert shared_modeled_server.complete(prompts[2]).num_cached_tokens == 192
    shared_modeled_server.wait_until_idle()


def test_preempted_answers_are_right(modeled_server: StartServer, tokenizer: Tokenizer) -> None:
    server = modeled_server(kv_bytes=104_000)
    prompts = [make_prompt(500 + index, 5000 + index) for index in range(24)]
    answers = server.complete_all(prompts, max_tokens=120)
    assert [answer.text for answer in answers] == [expected_text(tokenizer, prompt, 120) for prompt in prompts]
    records = server.records()
    assert sum(record["num_preemptions"] for record in records) > 0, "no answer was preempted: use less memory"
    assert len({record["request_id"] for record in records}) == len(records) == len(prompts)
    server.wait_until_idle()


def test_every_request_ends_in_exactly_one_way(shared_modeled_server: LiveServer) -> None:
    server = shared_modeled_server
    known = {record["request_id"] for record in server.records()}
    for index in range(4):
        server.complete(make_prompt(40, 6000 + index))
    with server.stream(make_prompt(40, 6100), max_tokens=5000) as stream:
        stream.read(2)
    server.wait_until_idle()
    records = [record for record in server.records() if record["request_id"] not in known]
    assert sorted(record["outcome"] for record in records) == ["aborted", "length", "length", "length", "length"]
    assert len({record["request_id"] for record in records}) == 5
    for record in records:
        if record["outcome"] == "length":
            assert set(record["timeline"]) == set(Lifecycle) - NOT_OF_ALL
        times = [record["timeline"][event] for event in Lifecycle if event in record["timeline"]]
        assert times == sorted(times), f"{record['request_id']}: {record['timeline']}"
