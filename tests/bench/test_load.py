"""Open loop: what has been planned is sent at its time, whether or not earlier requests have been answered."""

import asyncio
from collections.abc import Iterator
from itertools import count

import pytest

from diptych.bench.load import Api, LoadPlan, run_load
from diptych.bench.sample import Sample
from diptych.workload.session import Segment, Session, Turn
from diptych.workload.text import text_of


class SlowApi:
    """Takes `seconds` for each answer; remembers what was asked."""

    def __init__(self, seconds: float = 0.0, error: str = "") -> None:
        self.seconds = seconds
        self.error = error
        self.asked: list[list[str]] = []
        self.most_at_once = 0
        self._num = 0

    async def complete(self, said: list[str], sample: Sample, begin_s: float, timeout_s: float) -> str:
        self.asked.append(list(said))
        self._num += 1
        self.most_at_once = max(self.most_at_once, self._num)
        await asyncio.sleep(self.seconds)
        self._num -= 1
        sample.token_times_s = [sample.sent_s + self.seconds]
        sample.ended_s = sample.sent_s + self.seconds
        sample.error = self.error
        return f"answer {len(said)}"


def single(index: int, arrival_s: float) -> Session:
    return Session(arrival_s, (Turn((Segment((index,), 5),), 3),))


def evenly(rate_per_s: float) -> Iterator[Session]:
    return (single(index, index / rate_per_s) for index in count())


def run(api: Api, plan: LoadPlan, num_before_end: int | None = None) -> list[Sample]:
    ended: list[Sample] = []

    def on_sample(sample: Sample) -> bool:
        ended.append(sample)
        return len(ended) == num_before_end

    return asyncio.run(run_load(api, plan, on_sample))


def test_nobody_waits_for_others() -> None:
    api = SlowApi(seconds=0.3)
    samples = run(api, LoadPlan(lambda: evenly(100.0), duration_s=0.2))
    assert len(samples) == 20
    assert api.most_at_once == 20
    assert [sample.planned_s for sample in samples] == pytest.approx([index / 100 for index in range(20)])
    assert all(sample.sent_s >= sample.planned_s - 1e-3 for sample in samples)


def test_a_conversation_waits_for_its_answers_and_builds_on_them() -> None:
    turns = (
        Turn((Segment((1,), 4),), 3),
        Turn((Segment((2,), 2),), 3, think_s=0.05),
        Turn((Segment((3,), 2),), 3, think_s=60.0),
    )
    api = SlowApi(seconds=0.02)
    first, second = run(api, LoadPlan(lambda: iter([Session(0.0, turns)]), duration_s=10.0))
    assert second.planned_s >= first.planned_s + 0.07 - 1e-3
    assert [first.turn, second.turn] == [0, 1], "the third would come after the end"
    assert api.asked[1] == [text_of(turns[0].added), "answer 1", text_of(turns[1].added)]


def test_a_conversation_ends_where_an_answer_failed_and_the_rest_counts_as_failed() -> None:
    turns = (Turn((Segment((1,), 4),), 3), Turn((Segment((2,), 2),), 3))
    samples = run(SlowApi(error="HTTP 500"), LoadPlan(lambda: iter([Session(0.0, turns)]), duration_s=5.0))
    assert [sample.error for sample in samples] == ["HTTP 500", "not sent: the turn before has failed"]


def test_a_run_that_has_shown_enough_is_cut_short() -> None:
    api = SlowApi(seconds=0.0)
    plan = LoadPlan(lambda: iter([single(0, 0.0), single(1, 0.01), single(2, 50.0)]), duration_s=60.0)
    assert len(run(api, plan, num_before_end=2)) == 2


def test_requests_that_were_running_then_have_failed() -> None:
    class TwoSpeeds(SlowApi):
        async def complete(self, said: list[str], sample: Sample, begin_s: float, timeout_s: float) -> str:
            self.seconds = 30.0 if sample.session == 0 else 0.0
            return await super().complete(said, sample, begin_s, timeout_s)

    plan = LoadPlan(lambda: iter([single(0, 0.0), single(1, 0.01)]), duration_s=60.0)
    slow, quick = run(TwoSpeeds(), plan, num_before_end=1)
    assert (slow.error, quick.error) == ("given up: the run was ended early", "")


def test_what_goes_wrong_on_our_side_is_raised() -> None:
    def broken() -> Iterator[Session]:
        yield single(0, 0.0)
        raise RuntimeError("a broken plan")

    with pytest.raises(ExceptionGroup):
        run(SlowApi(), LoadPlan(broken, duration_s=1.0))
