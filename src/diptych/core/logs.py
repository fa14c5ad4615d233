"""How the log looks: a line an event, for people or as JSON, each with the process that it is from.

Whoever logs about a request names it with `about`, so that a log can be searched for it. Prompts and keys are never
logged, at any level.
"""

import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
FIELDS = "diptych_fields"
OUR_LOGGERS = "diptych"


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What is logged, and how."""

    format: LogFormat = "text"
    level: LogLevel = "info"
    """Of our own lines; libraries are heard from `warning` on."""


def about(**fields: Any) -> dict[str, Any]:
    """Return `extra` of a log call: facts for programs, such as `request_id`."""
    return {FIELDS: fields}


def configure_logging(process: str, settings: LogSettings) -> None:
    """Log to stderr from now on, as `process`. For whole processes: it replaces what was configured before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter(process) if settings.format == "json" else _TextFormatter(process))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger(OUR_LOGGERS).setLevel(settings.level.upper())


def _moment(record: logging.LogRecord) -> str:
    """Return when it was, in UTC and to the millisecond."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def _fields_of(record: logging.LogRecord) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = getattr(record, FIELDS, {})
    return fields


class _TextFormatter(logging.Formatter):
    """`2026-11-26T03:24:14.123Z warning decode-0: what happened (diptych.worker.roster)`."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        head = f"{_moment(record)} {record.levelname.lower()} {self._process}: {record.getMessage()} ({record.name})"
        if record.exc_info:
            head += "\n" + self.formatException(record.exc_info)
        return head


class _JsonFormatter(logging.Formatter):
    """An object a line: time, level, process, logger, message, then the facts."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _moment(record),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(_fields_of(record))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()
