"""Greedy answers to natural text do not depend on chunks, company, hand-over, cache or kind of worker."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.live_server import LiveServer, Serving
from tests.parity.reference import BareEngine

from diptych.frontend.text.tokenizer import Tokenizer

NUM_TOKENS = 100

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mixed_server(serving: Serving) -> Iterator[LiveServer]:
    """One mixed worker that reads prompts in small chunks, on one core like the workers of the other server."""
    core = min(os.sched_getaffinity(0))
    with serving(mixed=1, cores=[core], chunk_tokens=48, decode_chunk_tokens=20) as live:
        yield live


@pytest.fixture(scope="module")
def expected_texts(tokenizer: Tokenizer, reference_answers: list[list[int]]) -> list[str]:
    return [tokenizer.decode(answer) for answer in reference_answers]


def test_handed_over_one_at_a_time(
    smol_server: LiveServer, prompts: list[list[int]], expected_texts: list[str]
) -> None:
    answers = [smol_server.complete(prompt, max_tokens=NUM_TOKENS) for prompt in prompts]
    assert [answer.text for answer in answers] == expected_texts
    assert {answer.num_output_tokens for answer in answers} == {NUM_TOKENS}
    records = smol_server.records()[-len(prompts) :]
    assert any(record["prefill_worker"] == "prefill-0" for record in records)
    smol_server.wait_until_idle()


def test_handed_over_all_at_once_and_from_the_cache(
    smol_server: LiveServer, prompts: list[list[int]], expected_texts: list[str]
) -> None:
    answers = smol_server.complete_all(prompts, max_tokens=NUM_TOKENS)
    assert [answer.text for answer in answers] == expected_texts
    again = smol_server.complete(prompts[-1], max_tokens=NUM_TOKENS)
    assert again.num_cached_tokens >= len(prompts[-1]) - 33
    assert again.text == expected_texts[-1]
    smol_server.wait_until_idle()


def test_mixed_with_other_chunks(mixed_server: LiveServer, prompts: list[list[int]], expected_texts: list[str]) -> None:
    answers = mixed_server.complete_all(prompts, max_tokens=NUM_TOKENS)
    assert [answer.text for answer in answers] == expected_texts
    mixed_server.wait_until_idle()


def test_same_seed_same_answer_at_temperature_1(
    smol_server: LiveServer, mixed_server: LiveServer, prompts: list[list[int]]
) -> None:
    def texts(server: LiveServer, seed: int) -> list[str]:
        drawn = server.complete_all(prompts[1:5], max_tokens=24, temperature=1, seed=seed)
        return [answer.text for answer in drawn]

    handed_over = texts(smol_server, 11)
    assert texts(mixed_server, 11) == handed_over
    assert texts(smol_server, 11) == handed_over, "now their prompts were in the cache"
    assert texts(mixed_server, 12) != handed_over


def test_any_chunks_and_any_company(
    bare_engine: BareEngine, prompts: list[list[int]], reference_answers: list[list[int]]
) -> None:
    together = bare_engine.greedy_answers(prompts, NUM_TOKENS, [2, 7, 33, 64, 31, 100])
    assert together == reference_answers


@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_drawn_chunks_and_company(
    bare_engine: BareEngine, prompts: list[list[int]], reference_answers: list[list[int]], data: st.DataObject
) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(prompts) - 1), min_size=1, max_size=4), "prompts")
    chunks = data.draw(st.lists(st.integers(2, 300), min_size=len(chosen), max_size=len(chosen)), "chunks")
    answers = bare_engine.greedy_answers([prompts[index] for index in chosen], 12, chunks)
    assert answers == [reference_answers[index][:12] for index in chosen]
