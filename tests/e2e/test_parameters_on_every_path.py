"""All that a request may ask for holds on every path: handed over, cached, colocated, preempted."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.live_server import LiveServer, StartServer
from tests.modeled_answers import make_prompt

REGEX = "[A-Za-z ]{10}([0-9]{3}[a-z ]{5}){2,6}"
MOST_ROUNDS = 10
REQUESTS: dict[str, dict[str, Any]] = {
    "penalties": {"presence_penalty": 1.5, "frequency_penalty": 1.0, "repetition_penalty": 1.2},
    "biases": {"logit_bias": {"500": 9.0, "501": 9.0, "502": 8.5}, "min_tokens": 20, "stop_token_ids": [501]},
    "grammar": {"structured_outputs": {"regex": REGEX}},
    "choices": {"n": 3},
    "logprobs": {"logprobs": 3, "prompt_logprobs": 1},
    "everything": {
        "n": 2,
        "structured_outputs": {"regex": REGEX},
        "frequency_penalty": 1.0,
        "logprobs": 2,
        "top_p": 0.99,
        "bad_words": ["1"],
    },
}


def answer(server: LiveServer, prompt: list[int], wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the choices of a request, as they came."""
    body = {"temperature": 1, "seed": 5, "max_tokens": 60, "ignore_eos": False} | wanted
    response = server.post(prompt, **body)
    assert response.status_code == 200, response.text
    choices: list[dict[str, Any]] = response.json()["choices"]
    return choices


@pytest.mark.parametrize("name", REQUESTS)
def test_the_path_does_not_show(modeled_server: StartServer, name: str) -> None:
    wanted, prompt = REQUESTS[name], make_prompt(150, 1)
    server = modeled_server()
    handed_over = answer(server, prompt, wanted)
    assert server.records()[-1]["prefill_worker"] == "prefill-0"
    assert answer(server, prompt, wanted) == handed_over, "now it was in the cache"
    short = make_prompt(8, 1)
    colocated = modeled_server(mixed=1)
    assert answer(colocated, prompt, wanted) == handed_over
    assert answer(colocated, short, wanted) == answer(server, short, wanted), "read by the decode worker itself"
    for one in (server, colocated):
        one.wait_until_idle()


def test_preempted_requests_get_what_they_asked_for(modeled_server: StartServer) -> None:
    prompts = [make_prompt(500 + number, number) for number in range(16)]
    wanted = REQUESTS["everything"] | {"max_tokens": 90}
    roomy, tight = modeled_server(), modeled_server(kv_bytes=104_000)
    alone = [answer(roomy, prompt, wanted) for prompt in prompts]
    for _ in range(MOST_ROUNDS):  # who begins when is chance: now and then all fit beside each other
        with ThreadPoolExecutor(len(prompts)) as pool:
            assert list(pool.map(lambda prompt: answer(tight, prompt, wanted), prompts)) == alone
        if any(record["num_preemptions"] for record in tight.records()):
            break
    else:
        pytest.fail(f"nothing was preempted in {MOST_ROUNDS} rounds")
    for one in (roomy, tight):
        one.wait_until_idle()
