"""How lines of the log look."""

import json
import logging
from collections.abc import Callable, Iterator

import pytest

from diptych.core.logs import LogFormat, LogLevel, LogSettings, about, configure_logging

log = logging.getLogger("diptych.tests")


Read = Callable[[], list[str]]


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Iterator[Read]:
    """Hand out a reader of what was logged; afterwards logging is as it was."""
    root, ours = logging.getLogger(), logging.getLogger("diptych")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    root.handlers = []

    def read() -> list[str]:
        return capsys.readouterr().err.splitlines()

    yield read
    root.handlers = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def configure(format: LogFormat = "text", level: LogLevel = "info") -> None:  # noqa: A002  as the setting is called
    configure_logging("decode-0", LogSettings(format, level))


def test_a_line_for_people(lines: Read) -> None:
    configure()
    log.warning("%s blocks are gone", 7, extra=about(request_id="r1"))
    (line,) = lines()
    moment, _, rest = line.partition(" ")
    assert moment.endswith("Z")
    assert rest == "warning decode-0: 7 blocks are gone (diptych.tests)"


def test_a_line_for_programs(lines: Read) -> None:
    configure("json")
    log.warning('say "%s"\n', "hello", extra=about(request_id="r1", phases_s={"queue": 0.5}))
    (line,) = lines()
    said = json.loads(line)
    assert said.pop("time").endswith("Z")
    assert said == {
        "level": "warning",
        "process": "decode-0",
        "logger": "diptych.tests",
        "message": 'say "hello"\n',
        "request_id": "r1",
        "phases_s": {"queue": 0.5},
    }


@pytest.mark.parametrize("format", ["text", "json"])
def test_an_exception_is_told_with_its_traceback(lines: Read, format: LogFormat) -> None:  # noqa: A002
    configure(format)
    try:
        int("no number")
    except ValueError:
        log.exception("it failed")
    told = lines()
    assert "ValueError: invalid literal" in told[-1]
    assert len(told) == 1 or format == "text"


@pytest.mark.parametrize(("level", "num_lines"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_levels(lines: Read, level: LogLevel, num_lines: int) -> None:
    configure(level=level)
    for say in (log.debug, log.info, log.warning, log.error):
        say("hello")
    logging.getLogger("somebody.else").info("libraries are not that interesting")
    assert len(lines()) == num_lines
