"""Raw streams count events however they come in pieces; profiles are summed up by what the event loop does."""

import socket

import pytest

import frontend_speed
from harness.raw_streams import RawStream

EVENT = b'data: {"choices":[{"text":"a","finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[{"text":"","finish_reason":"length"}]}\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize("size", [1, 7, 20, 64, 1_000])
def test_events_are_counted_however_they_are_cut(size: int) -> None:
    data = EVENT * 5 + LAST
    with socket.socket() as connection:
        stream = RawStream(connection)
        for begin in range(0, len(data), size):
            stream.push(data[begin : begin + size], float(begin))
    assert stream.num_events == 5
    assert stream.is_done
    assert stream.times_s == sorted(stream.times_s)


def test_stacks_are_summed_by_their_innermost_known_frame() -> None:
    loop = "main (diptych/launch/front.py:9);Runner.run (asyncio/runners.py:118)"
    shares = frontend_speed.summarize_stacks(
        f"{loop};on_tokens (diptych/router/follower.py:1);push (diptych/frontend/text/choice_text.py:2) 30\n"
        f"{loop};on_tokens (diptych/router/follower.py:1) 50\n"
        f"{loop} 20\n"
        "run (threading.py:1);wait (threading.py:2) 900\n"
    )
    assert shares == {"router": 0.5, "tokens to text": 0.3, "event loop": 0.2}
