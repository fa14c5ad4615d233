"""Samples as a client would have seen them, for tests."""

from collections.abc import Callable
from typing import Any

import pytest

from diptych.bench.sample import Sample

MakeSample = Callable[..., Sample]


@pytest.fixture
def make_sample() -> MakeSample:
    """Return a maker of whole answers: planned at `planned_s`, first token after `ttft_s`, then one every `gap_s`."""

    def make(planned_s: float = 0.0, ttft_s: float = 0.5, gap_s: float = 0.02, num: int = 11, **more: Any) -> Sample:
        times_s = [planned_s + ttft_s + index * gap_s for index in range(num)]
        fields: dict[str, Any] = {
            "planned_s": planned_s,
            "sent_s": planned_s + 0.001,
            "session": 0,
            "turn": 0,
            "num_wanted_tokens": num,
            "token_times_s": times_s,
            "ended_s": times_s[-1],
            "num_output_tokens": num,
            "status": 200,
        }
        return Sample(**(fields | more))

    return make
