"""The same with the precision that users get, bf16 on CPUs that compute in it: the other tests of parity ask for f32.

There a block that decode wrote may round unlike one that prefill wrote, so the server is asked to be `exact`.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.live_server import Serving
from tests.parity.reference import BareEngine, bound_engine

from diptych.frontend.text.tokenizer import Tokenizer

NUM_TOKENS = 48

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def default_engine(model_dir: Path) -> Iterator[BareEngine]:
    engine = bound_engine(model_dir, "auto")
    yield engine
    os.close(engine.descriptor)


def test_no_path_changes_an_answer(
    default_engine: BareEngine, serving: Serving, tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    expected = default_engine.greedy_answers(prompts, NUM_TOKENS, [1024] * len(prompts))
    assert default_engine.greedy_answers(prompts, NUM_TOKENS, [100, 31, 2, 64, 33, 7]) == expected
    texts = [tokenizer.decode(answer) for answer in expected]

    with serving(kv_dtype="auto", exact=True) as server:
        alone = [server.complete(prompt, max_tokens=NUM_TOKENS) for prompt in prompts]
        assert [answer.text for answer in alone] == texts
        together = server.complete_all(prompts, max_tokens=NUM_TOKENS)
        assert [answer.text for answer in together] == texts
        assert any(answer.num_cached_tokens for answer in together)
        server.wait_until_idle()
