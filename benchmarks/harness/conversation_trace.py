"""The part of Mooncake's conversation trace that comes with the project (traces/README.md)."""

import gzip
from pathlib import Path

from diptych.workload.trace import TraceRow, read_rows

PATH = Path(__file__).parents[2] / "traces" / "mooncake-conversation-6000.jsonl.gz"


def conversation_rows(most_rows: int | None = None) -> list[TraceRow]:
    """Return its first rows, all by default, in the order of arrival."""
    with gzip.open(PATH, "rt", encoding="utf-8") as file:
        return read_rows(file, PATH.name)[:most_rows]
