"""Records of requests that have ended, as the router would make them."""

from collections.abc import Callable
from typing import Any

import pytest

from diptych.core.events import Lifecycle, RequestRecord

MakeRecord = Callable[..., RequestRecord]
WHOLE_LIFE = {
    Lifecycle.ARRIVED: 100.0,
    Lifecycle.ROUTED: 100.002,
    Lifecycle.RESERVED: 100.102,
    Lifecycle.GRANTED: 100.103,
    Lifecycle.PREFILL_STARTED: 100.303,
    Lifecycle.FIRST_TOKEN: 100.5,
    Lifecycle.JOINED: 100.51,
    Lifecycle.FINISHED: 101.5,
}


@pytest.fixture
def make_record() -> MakeRecord:
    """Return a maker of records of a request that was handed over and got 11 tokens within 1.5 s."""

    def make(**more: Any) -> RequestRecord:
        fields: dict[str, Any] = {
            "request_id": "r0",
            "outcome": "length",
            "decode_worker": "decode-0",
            "prefill_worker": "prefill-0",
            "num_prompt_tokens": 100,
            "num_cached_tokens": 32,
            "num_output_tokens": 11,
            "num_preemptions": 0,
            "timeline": dict(WHOLE_LIFE),
        }
        return RequestRecord(**(fields | more))

    return make
