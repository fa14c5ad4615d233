"""Traces in Mooncake's format: prefixes are shared as recorded, whatever the scale."""

import json
from itertools import islice, pairwise, takewhile
from pathlib import Path

import pytest

from diptych.core.errors import ConfigError
from diptych.workload.session import Segment, Session
from diptych.workload.text import words_of
from diptych.workload.trace import BLOCK_TOKENS, Trace, TraceRow, read_rows

SLICE = Path(__file__).parents[2] / "traces" / "mooncake-conversation-1000.jsonl"

ROWS = [
    {"timestamp": 0, "input_length": 1_100, "output_length": 50, "hash_ids": [0, 1, 2]},
    {"timestamp": 500, "input_length": 1_300, "output_length": 10, "hash_ids": [0, 1, 3]},
    {"timestamp": 1_500, "input_length": 5_000, "output_length": 10, "hash_ids": list(range(10, 20))},
    {"timestamp": 3_000, "input_length": 512, "output_length": 0, "hash_ids": [7]},
]
LINES = [json.dumps(row) for row in ROWS]


def num_shared(one: Session, other: Session) -> int:
    """Count the words with which both prompts begin."""
    words, others = ([word for part in session.turns[0].added for word in words_of(part)] for session in (one, other))
    same = [word == other_word for word, other_word in zip(words, others, strict=False)]
    return same.index(False) if False in same else len(same)


@pytest.mark.parametrize(("scale", "shared"), [(1.0, 1_024), (0.25, 256), (0.1, 102)])
def test_prefixes_are_shared_as_recorded(scale: float, shared: int) -> None:
    first, second, *_ = islice(Trace(read_rows(LINES, "t"), scale).sessions(1.0, 0), 4)
    assert shared <= num_shared(first, second) <= shared + 1
    assert first.turns[0].num_added_tokens == round(1_100 * scale)
    assert first.turns[0].num_output_tokens == round(50 * scale)


def test_rows_that_are_too_long_are_left_out() -> None:
    trace = Trace(read_rows(LINES, "t"), max_tokens=2_000)
    assert trace.num_left_out == 1
    assert trace.recorded_rate_per_s == pytest.approx(1.0)
    with pytest.raises(ConfigError, match="no row of the trace has at most 3 tokens"):
        Trace(read_rows(LINES, "t"), max_tokens=3)


def test_the_trace_is_replayed_at_the_rate_that_is_asked_for_and_goes_on() -> None:
    trace = Trace(read_rows(LINES, "t"), max_tokens=2_000)
    sessions = list(islice(trace.sessions(2.0, 0), 300))
    assert [session.arrival_s for session in sessions[:3]] == pytest.approx([0.0, 0.25, 1.5])
    assert 300 / sessions[-1].arrival_s == pytest.approx(2.0, rel=0.02)
    assert all(earlier.arrival_s <= later.arrival_s for earlier, later in pairwise(sessions))
    assert num_shared(sessions[0], sessions[3]) < 5, "a repetition has new texts"


def test_a_seed_begins_elsewhere() -> None:
    rows = read_rows([json.dumps({**ROWS[0], "timestamp": 100 * index}) for index in range(50)], "t")
    first = next(iter(Trace(rows).sessions(1.0, 3)))
    assert first.arrival_s == 0.0


def test_requests_that_all_came_at_once_come_at_once() -> None:
    rows = read_rows([LINES[0], LINES[0]], "t")
    assert [session.arrival_s for session in islice(Trace(rows).sessions(1.0, 0), 2)] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 2: no row of a Mooncake trace"),
        ('{"timestamp": 1}', "line 2: no row of a Mooncake trace: .*input_length"),
        (json.dumps({**ROWS[0], "hash_ids": [1]}), "line 2: a hash id for every 512 tokens"),
        (json.dumps({**ROWS[0], "input_length": 0, "hash_ids": []}), "line 2: a hash id"),
    ],
)
def test_a_wrong_row_is_named(line: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        read_rows([LINES[0], line], "some.jsonl")


def test_an_empty_file_is_no_trace() -> None:
    with pytest.raises(ConfigError, match=r"some\.jsonl has no rows"):
        read_rows(["", "\n"], "some.jsonl")


def test_a_segment_begins_as_a_longer_one_with_its_key() -> None:
    short, long = words_of(Segment((3, 9), 40)), words_of(Segment((3, 9), 500))
    assert long[:40] == short
    assert words_of(Segment((3, 10), 40)) != short


@pytest.fixture(scope="module")
def slice_rows() -> list[TraceRow]:
    """The part of Mooncake's trace that comes with the project."""
    return read_rows(SLICE.read_text().splitlines(), SLICE.name)


def test_the_slice_is_what_its_page_says(slice_rows: list[TraceRow]) -> None:
    trace = Trace(slice_rows)

    assert len(slice_rows) == 1_000
    assert trace.num_left_out == 0
    assert trace.recorded_rate_per_s == pytest.approx(3.03, rel=0.01)
    assert max(row.input_length for row in slice_rows) == 121_924
    assert SLICE.stat().st_size < 300_000
    assert "Apache License" in SLICE.with_name("LICENSE").read_text()


def test_the_slice_scaled_as_the_guide_shows_fits_a_small_model(slice_rows: list[TraceRow]) -> None:
    trace = Trace(slice_rows, 0.1, 2_000)
    num_kept = len(slice_rows) - trace.num_left_out
    turns = [session.turns[0] for session in islice(trace.sessions(2.0, 0), num_kept)]

    assert num_kept == 796
    assert max(turn.num_added_tokens + turn.num_output_tokens for turn in turns) <= 2_000
    assert sum(turn.num_added_tokens for turn in turns) / num_kept == pytest.approx(713, abs=1)
    assert sum(turn.num_output_tokens for turn in turns) / num_kept == pytest.approx(34, abs=1)


def test_prompts_of_the_slice_share_the_prefixes_that_were_recorded(slice_rows: list[TraceRow]) -> None:
    scale, num_compared = 0.1, 60
    sessions = list(islice(Trace(slice_rows, scale).sessions(2.0, 0), num_compared))
    depths = []

    for (row, session), (later, later_session) in pairwise(zip(slice_rows, sessions, strict=False)):
        same = takewhile(lambda ids: ids[0] == ids[1], zip(row.hash_ids, later.hash_ids, strict=False))
        num_same_ids = sum(1 for _ in same)
        num_tokens = min(num_same_ids * BLOCK_TOKENS, row.input_length, later.input_length)
        shared = num_shared(session, later_session)
        assert round(num_tokens * scale) - 1 <= shared <= round(num_tokens * scale) + 3
        depths.append(num_same_ids)

    assert min(depths) >= 1, "all prompts of this part begin alike"


def test_a_talk_of_the_slice_goes_on_from_its_earlier_turns(slice_rows: list[TraceRow]) -> None:
    """The longest prefix that two requests share is found again in their texts."""
    scale = 0.1
    by_prefix: dict[tuple[int, ...], int] = {}
    pairs: list[tuple[int, int, int]] = []
    for index, row in enumerate(slice_rows):
        known = [end for end in range(1, len(row.hash_ids)) if tuple(row.hash_ids[:end]) in by_prefix]
        if known and known[-1] > 1:
            pairs.append((known[-1], by_prefix[tuple(row.hash_ids[: known[-1]])], index))
        by_prefix.update({tuple(row.hash_ids[:end]): index for end in range(1, len(row.hash_ids))})
    sessions = list(islice(Trace(slice_rows, scale).sessions(2.0, 0), len(slice_rows)))

    assert len(pairs) > 200
    for num_ids, earlier, later in sorted(pairs)[-5:]:
        assert num_shared(sessions[earlier], sessions[later]) >= round(num_ids * BLOCK_TOKENS * scale) - 1
