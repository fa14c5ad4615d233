import io

import pytest

from diptych.models.progress import PlainProgress, SilentProgress, TerminalProgress, format_bytes, stderr_progress


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (92_871_040, "93 MB"), (1.2e9, "1.2 GB")],
)
def test_sizes_for_people(num_bytes: float, text: str) -> None:
    assert format_bytes(num_bytes) == text


def test_plain_lines_come_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("diptych.models.progress.time.monotonic", lambda: now_s)
    stream = io.StringIO()
    with PlainProgress(stream).stage("fetching x", 2_000_000) as update:
        update(1)
        now_s += 11
        update(1_000_000)
        update(1_100_000)
    assert stream.getvalue().splitlines() == ["fetching x (2.0 MB)", "fetching x: 1.0 MB of 2.0 MB, 11 s"]


def test_a_stage_of_unknown_length_tells_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("diptych.models.progress.time.monotonic", lambda: now_s)
    stream = io.StringIO()
    with PlainProgress(stream).stage("converting") as update:
        now_s += 20
        update(0)
    assert stream.getvalue().splitlines() == ["converting", "converting: 20 s"]


def test_bars_are_drawn_on_stderr(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with TerminalProgress().stage("fetching [x]", 2_000_000) as update:
        update(1_000_000)
    with TerminalProgress().stage("converting") as update:
        update(5)
    TerminalProgress().note("done")
    out, err = capsys.readouterr()
    assert out == ""
    assert "fetching [x]" in err
    assert err.endswith("done\n")


def test_without_a_terminal_lines_are_plain() -> None:
    assert isinstance(stderr_progress(), PlainProgress)


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    SilentProgress().note("x")
    with SilentProgress().stage("y", 5) as update:
        update(3)
    assert capsys.readouterr() == ("", "")
