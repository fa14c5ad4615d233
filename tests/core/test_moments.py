"""Moments cross between clocks wherever in a message they stand; durations stay."""

import math
import re
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec
import pytest

from diptych.core.bounds import IS_MOMENT
from diptych.core.events import FinishReason, Lifecycle
from diptych.core.ids import BlockHash, RequestId, WorkerId
from diptych.core.messages import (
    Borrow,
    Finished,
    PeerAddress,
    Submit,
    Tokens,
    ToRouter,
    ToWorker,
)
from diptych.core.moments import shifted
from diptych.core.request import Request, SamplingParams

MOMENT_NAME = re.compile(r"(^|_)(arrived|deadline|started|token|sent|now|until|due|begin|began|end|ended)_s$")
"""What moments are called. Everything else that ends in `_s` is a duration."""
REQUEST = Request(
    request_id=RequestId("one"),
    prompt_token_ids=[1, 2],
    sampling=SamplingParams(max_tokens=5),
    deadline_s=700.0,
    arrived_s=100.0,
)


def test_a_request_keeps_its_age() -> None:
    submit = shifted(Submit(request=REQUEST, attempt=1, prefill=None), 1000.0)
    assert (submit.request.arrived_s, submit.request.deadline_s) == (1100.0, 1700.0)
    assert submit == Submit(
        request=msgspec.structs.replace(REQUEST, arrived_s=1100.0, deadline_s=1700.0), attempt=1, prefill=None
    )


def test_what_was_before_a_machine_started_is_as_early_as_can_be() -> None:
    assert shifted(REQUEST, -400.0).arrived_s == 0.0
    assert shifted(msgspec.structs.replace(REQUEST, deadline_s=math.inf), -400.0).deadline_s == math.inf


def test_timelines_and_loans_move_too() -> None:
    timeline = {Lifecycle.ARRIVED: 5.0, Lifecycle.FINISHED: 6.5}
    end = Finished(
        request_id=RequestId("one"),
        attempt=0,
        choice=0,
        reason=FinishReason.STOP,
        num_output_tokens=3,
        num_cached_tokens=0,
        num_preemptions=0,
        timeline=timeline,
    )
    moved = shifted(Tokens(worker_id=WorkerId("d"), incarnation=1, finished=[end, end]), 10.0)
    assert [one.timeline for one in moved.finished] == [{Lifecycle.ARRIVED: 15.0, Lifecycle.FINISHED: 16.5}] * 2
    address = PeerAddress(WorkerId("d"), "ipc:///d", 1)
    loan = Borrow(request_id=RequestId("one"), epoch=3, borrower=address, hashes=[BlockHash(bytes(16))], deadline_s=7.0)
    assert shifted(loan, 1.0).deadline_s == 8.0


def _times(hint: Any, path: str, seen: set[Any]) -> list[tuple[str, bool]]:
    """Return all float fields that are named as times, wherever they are, and whether they are moments."""
    if get_origin(hint) is Annotated:
        return _times(get_args(hint)[0], path, seen)
    found: list[tuple[str, bool]] = []
    for argument in get_args(hint):
        found += _times(argument, path, seen)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct) and hint not in seen:
        seen.add(hint)
        for name, field in get_type_hints(hint, include_extras=True).items():
            metas = getattr(field, "__metadata__", ())
            is_moment = any(isinstance(meta, msgspec.Meta) and (meta.extra or {}).get(IS_MOMENT) for meta in metas)
            if name.endswith("_s"):
                found.append((name, is_moment))
            found += _times(field, f"{path}.{name}", seen)
    return found


@pytest.mark.parametrize("kinds", [ToWorker, ToRouter])
def test_every_time_in_a_message_says_what_it_is(kinds: Any) -> None:
    times = _times(kinds, "", set())
    assert times
    for name, is_moment in times:
        assert is_moment == bool(MOMENT_NAME.search(name)), f"{name}: a `Moment` or a duration?"
