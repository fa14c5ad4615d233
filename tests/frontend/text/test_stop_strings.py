"""The streaming matcher against a search that tries everything."""

import hypothesis.strategies as st
from hypothesis import given

from diptych.frontend.text.stop_strings import StopStringMatcher

texts = st.text("ab", max_size=40)
stop_lists = st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4)


def naive_cut(text: str, stop_strings: list[str]) -> int | None:
    """Return where the text is cut: before the longest stop string that is complete first."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stop_strings if text[:end].endswith(stop)]
        if complete:
            return end - max(len(stop) for stop in complete)
    return None


def naive_num_held(text: str, stop_strings: list[str]) -> int:
    """Return how many of the last characters could be the beginning of a stop string."""
    starts = [stop[:length] for stop in stop_strings for length in range(1, len(stop))]
    return max((len(start) for start in starts if text.endswith(start)), default=0)


@given(st.lists(texts, max_size=8), stop_lists)
def test_finds_what_a_naive_search_finds_however_the_text_is_split(pieces: list[str], stop_strings: list[str]) -> None:
    matcher = StopStringMatcher(stop_strings)
    shown = "".join(matcher.push(piece) for piece in pieces)
    shown += matcher.finish()
    text = "".join(pieces)
    cut = naive_cut(text, stop_strings)
    assert matcher.is_stopped == (cut is not None)
    assert shown == text[:cut]


@given(st.lists(texts, max_size=8), stop_lists)
def test_holds_back_only_what_could_begin_a_stop_string(pieces: list[str], stop_strings: list[str]) -> None:
    matcher = StopStringMatcher(stop_strings)
    text = shown = ""
    for piece in pieces:
        text += piece
        shown += matcher.push(piece)
        if matcher.is_stopped:
            break
        assert len(shown) == len(text) - naive_num_held(text, stop_strings)
    assert not any(stop in shown for stop in stop_strings)


def test_drops_everything_after_a_stop_string() -> None:
    matcher = StopStringMatcher(["END"])
    assert [matcher.push(piece) for piece in ("a E", "N", "D b", "c")] == ["a ", "", "", ""]
    assert matcher.finish() == ""


def test_gives_back_a_beginning_that_came_to_nothing() -> None:
    matcher = StopStringMatcher(["\n\nQ:"])
    assert matcher.push("one\n\n") == "one"
    assert matcher.push("two\n") == "\n\ntwo"
    assert matcher.finish() == "\n"


def test_without_stop_strings_all_text_passes() -> None:
    assert StopStringMatcher([]).push("text") == "text"
