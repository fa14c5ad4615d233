"""Defaults, limits and seeds on the way from a body to a request."""

import pytest

from diptych.core.clock import VirtualClock
from diptych.core.errors import InvalidRequestError, NotFoundError
from diptych.frontend.openai_requests import ChatCompletionRequest, CompletionRequest
from diptych.frontend.request_translation import RequestTranslator
from diptych.frontend.settings import FrontendSettings
from diptych.frontend.tokenizer import Tokenizer


@pytest.fixture
def translator(tokenizer: Tokenizer) -> RequestTranslator:
    settings = FrontendSettings(model_name="smol", max_model_len=64, request_timeout_s=30.0)
    return RequestTranslator(tokenizer, settings, VirtualClock(100.0))


def completion(**fields: object) -> CompletionRequest:
    return CompletionRequest.model_validate({"model": "smol", "prompt": [5] * 10} | fields)


def test_an_answer_may_fill_the_context(translator: RequestTranslator) -> None:
    chat = {"model": "smol", "messages": [{"role": "user", "content": "Hi"}]}
    asked_for_all = translator.from_chat(ChatCompletionRequest.model_validate(chat))
    assert asked_for_all.sampling.max_tokens == 64 - len(asked_for_all.prompt_token_ids)
    assert translator.from_completion(completion()).sampling.max_tokens == 16
    assert translator.from_completion(completion(max_tokens=54)).sampling.max_tokens == 54
    assert translator.from_completion(completion(prompt=[5] * 63)).sampling.max_tokens == 1
    with pytest.raises(InvalidRequestError, match="ask for 54 at most"):
        translator.from_completion(completion(max_tokens=55))


def test_the_deadline_counts_from_the_arrival(translator: RequestTranslator) -> None:
    request = translator.from_completion(completion())
    assert (request.arrived_s, request.deadline_s) == (100.0, 130.0)


def test_a_seed_is_kept_or_drawn(translator: RequestTranslator) -> None:
    assert translator.from_completion(completion(seed=0)).sampling.seed == 0
    drawn = {translator.from_completion(completion()).sampling.seed for _ in range(5)}
    assert len(drawn) == 5
    for seed in (-(2**63), -1, 2**63 - 1):
        kept = translator.from_completion(completion(seed=seed)).sampling.seed
        assert 0 <= kept < 2**63
        assert kept == translator.from_completion(completion(seed=seed)).sampling.seed


def test_ids_are_unique_and_tell_their_kind(translator: RequestTranslator) -> None:
    ids = [translator.from_completion(completion()).request_id for _ in range(3)]
    assert len(set(ids)) == 3
    assert all(request_id.startswith("cmpl-") for request_id in ids)


@pytest.mark.parametrize("prompt", [["one two"], "one two"])
def test_a_list_of_one_prompt_is_that_prompt(
    translator: RequestTranslator, tokenizer: Tokenizer, prompt: object
) -> None:
    assert translator.from_completion(completion(prompt=prompt)).prompt_token_ids == tokenizer.encode("one two")
    assert translator.from_completion(completion(prompt=[[3, 4]])).prompt_token_ids == [3, 4]


def test_text_parts_are_joined(translator: RequestTranslator) -> None:
    def chat(content: object) -> ChatCompletionRequest:
        return ChatCompletionRequest.model_validate(
            {"model": "smol", "messages": [{"role": "user", "content": content}]}
        )

    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": " two"}]
    assert translator.from_chat(chat(parts)).prompt_token_ids == translator.from_chat(chat("one two")).prompt_token_ids


def test_top_k_of_minus_one_keeps_all(translator: RequestTranslator) -> None:
    assert translator.from_completion(completion(top_k=-1)).sampling.top_k == 0


def test_another_model_is_not_found(translator: RequestTranslator) -> None:
    with pytest.raises(NotFoundError, match="'other' does not exist"):
        translator.check_model("other")
