from itertools import islice

import numpy as np
import pytest

from diptych.core.errors import ConfigError
from diptych.core.slo import Slo
from diptych.workload.datasets import DATASETS, find_dataset, usual_slo


@pytest.mark.parametrize(
    ("name", "prompt_tokens", "answer_tokens"),
    [("chat", 755.5, 200.3), ("code", 171.3, 98.2), ("summarise", 1738.3, 90.7)],
)
def test_lengths_have_the_published_means(name: str, prompt_tokens: float, answer_tokens: float) -> None:
    turns = [session.turns[0] for session in islice(DATASETS[name].sessions(1.0, seed=1), 20_000)]
    assert np.mean([turn.num_added_tokens for turn in turns]) == pytest.approx(prompt_tokens, rel=0.03)
    assert np.mean([turn.num_output_tokens for turn in turns]) == pytest.approx(answer_tokens, rel=0.03)


def test_limits_are_the_papers_where_it_has_some() -> None:
    assert usual_slo(DATASETS["chat"], "opt-175b") == Slo(4.0, 0.2)
    assert usual_slo(DATASETS["chat"], "llama-3-8b") == Slo(0.4, 0.1)


def test_an_unknown_workload_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match="chat, code, summarise, mixed"):
        find_dataset("poetry")
