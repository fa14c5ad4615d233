"""Defaults, limits and seeds on the way from a body to a request."""

import pytest

from diptych.core.clock import VirtualClock
from diptych.core.errors import InvalidRequestError, NotFoundError
from diptych.core.request import Request
from diptych.frontend.openai.chat import ChatCompletionRequest
from diptych.frontend.openai.completions import CompletionRequest
from diptych.frontend.request_translation import RequestTranslator
from diptych.frontend.settings import FrontendSettings
from diptych.frontend.text.tokenizer import Tokenizer


class Translator(RequestTranslator):
    """Returns the one request that a body asks for."""

    def completion(self, **fields: object) -> Request:
        (request,) = self.completions(**fields)
        return request

    def completions(self, **fields: object) -> list[Request]:
        body = CompletionRequest.model_validate({"model": "smol", "prompt": [5] * 10} | fields)
        return self.from_completion(body)[0].requests

    def chat(self, **fields: object) -> Request:
        chat = {"model": "smol", "messages": [{"role": "user", "content": "Hi"}]}
        (request,) = self.from_chat(ChatCompletionRequest.model_validate(chat | fields))[0].requests
        return request


@pytest.fixture
def translator(tokenizer: Tokenizer) -> Translator:
    settings = FrontendSettings(model_name="smol", max_model_len=64, request_timeout_s=30.0)
    return Translator(tokenizer, settings, VirtualClock(100.0))


def test_an_answer_may_fill_the_context(translator: Translator) -> None:
    asked_for_all = translator.chat()
    assert asked_for_all.sampling.max_tokens == 64 - len(asked_for_all.prompt_token_ids)
    assert translator.completion().sampling.max_tokens == 16
    assert translator.completion(max_tokens=54).sampling.max_tokens == 54
    assert translator.completion(prompt=[5] * 63).sampling.max_tokens == 1
    with pytest.raises(InvalidRequestError, match="ask for 54 at most"):
        translator.completion(max_tokens=55)


def test_the_deadline_counts_from_the_arrival(translator: Translator) -> None:
    request = translator.completion()
    assert (request.arrived_s, request.deadline_s) == (100.0, 130.0)


def test_a_seed_is_kept_or_drawn(translator: Translator) -> None:
    assert translator.completion(seed=0).sampling.seed == 0
    drawn = {translator.completion().sampling.seed for _ in range(5)}
    assert len(drawn) == 5
    for seed in (-(2**63), -1, 2**63 - 1):
        kept = translator.completion(seed=seed).sampling.seed
        assert 0 <= kept < 2**63
        assert kept == translator.completion(seed=seed).sampling.seed


def test_ids_are_unique_and_tell_their_kind(translator: Translator) -> None:
    ids = [translator.completion().request_id for _ in range(3)]
    assert len(set(ids)) == 3
    assert all(request_id.startswith("cmpl-") for request_id in ids)


@pytest.mark.parametrize("prompt", [["one two"], "one two"])
def test_a_list_of_one_prompt_is_that_prompt(translator: Translator, tokenizer: Tokenizer, prompt: object) -> None:
    assert translator.completion(prompt=prompt).prompt_token_ids == tokenizer.encode("one two")
    assert translator.completion(prompt=[[3, 4]]).prompt_token_ids == [3, 4]


def test_text_parts_are_joined(translator: Translator) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": " two"}]
    joined = translator.chat(messages=[{"role": "user", "content": parts}])
    assert (
        joined.prompt_token_ids == translator.chat(messages=[{"role": "user", "content": "one two"}]).prompt_token_ids
    )


def test_top_k_of_minus_one_keeps_all(translator: Translator) -> None:
    assert translator.completion(top_k=-1).sampling.top_k == 0


def test_another_model_is_not_found(translator: Translator) -> None:
    with pytest.raises(NotFoundError, match="'other' does not exist"):
        translator.check_model("other")


def test_several_prompts_are_several_requests_of_one_id(translator: Translator, tokenizer: Tokenizer) -> None:
    requests = translator.completions(prompt=["one", "two three"], n=2, request_id="mine")
    assert [request.request_id for request in requests] == ["cmpl-mine-0", "cmpl-mine-1"]
    assert [request.prompt_token_ids for request in requests] == [
        tokenizer.encode("one"),
        tokenizer.encode("two three"),
    ]
    assert {request.num_choices for request in requests} == {2}


def test_a_client_may_name_its_request(translator: Translator) -> None:
    assert translator.chat(request_id="abc.1").request_id == "chatcmpl-abc.1"


def test_parameters_reach_the_workers(translator: Translator, tokenizer: Tokenizer) -> None:
    given: dict[str, object] = {
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.5,
        "min_tokens": 3,
        "stop_token_ids": [7, 8],
        "allowed_token_ids": [5, 6],
        "ignore_eos": True,
    }
    sampling = translator.completion(**given, logit_bias={"5": 1, "6": -100}, bad_words=["bad", "very bad"]).sampling
    assert {name: getattr(sampling, name) for name in given} == given
    assert sampling.logit_bias == {5: 1.0, 6: -100.0}
    written = [tokenizer.decode(words) for words in sampling.bad_words]
    assert written == ["bad", " bad", "very bad", " very bad"]


@pytest.mark.parametrize(
    ("given", "num_logprobs", "num_prompt_logprobs"),
    [
        ({}, None, None),
        ({"logprobs": 0}, 0, None),
        ({"logprobs": 3, "echo": True}, 3, 3),
        ({"echo": True}, None, None),
        ({"prompt_logprobs": 5}, None, 5),
        ({"prompt_logprobs": 1, "logprobs": 4, "echo": True}, 4, 4),
    ],
)
def test_only_the_logprobs_that_are_wanted_are_asked_for(
    translator: Translator, given: dict[str, object], num_logprobs: int | None, num_prompt_logprobs: int | None
) -> None:
    sampling = translator.completion(**given).sampling
    assert (sampling.num_logprobs, sampling.num_prompt_logprobs) == (num_logprobs, num_prompt_logprobs)


def test_a_prompt_is_truncated_from_the_left(translator: Translator) -> None:
    prompt = list(range(100, 180))
    assert translator.completion(prompt=prompt, truncate_prompt_tokens=5).prompt_token_ids == prompt[-5:]
    kept = translator.completion(prompt=prompt, truncate_prompt_tokens=-1, max_tokens=10).prompt_token_ids
    assert kept == prompt[-54:]
    with pytest.raises(InvalidRequestError, match="empty"):
        translator.completion(prompt=prompt, truncate_prompt_tokens=0)


def test_no_answer_has_fewer_tokens_than_it_may_have(translator: Translator) -> None:
    assert translator.completion(min_tokens=30).sampling.max_tokens == 30
    with pytest.raises(InvalidRequestError, match="5 tokens at most"):
        translator.completion(min_tokens=6, max_tokens=5)


def test_max_tokens_0_with_echo_samples_one_token_for_nobody(translator: Translator) -> None:
    assert translator.completion(max_tokens=0, echo=True).sampling.max_tokens == 1


def test_the_last_message_can_be_continued(translator: Translator, tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well, "}]
    request = translator.chat(messages=messages, continue_final_message=True)
    text = tokenizer.decode(request.prompt_token_ids, skip_special_tokens=False)
    assert text.endswith("assistant\nWell,")


def test_a_salt_travels_with_the_request(translator: Translator) -> None:
    assert translator.chat(cache_salt="tenant").cache_salt == "tenant"
    assert translator.chat().cache_salt == ""
