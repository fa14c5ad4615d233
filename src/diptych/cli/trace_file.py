"""Traces as commands are given them: Mooncake's JSON lines, packed with gzip or plain."""

import gzip
import zlib
from pathlib import Path

from diptych.core.errors import ConfigError
from diptych.workload.trace import TraceRow, read_rows


def read_trace_file(path: Path) -> list[TraceRow]:
    """Return a trace's rows, in the order of arrival; a name that ends in .gz says that it is packed.

    Raises: ConfigError if the file cannot be read, or holds no trace.
    """
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the trace {path}: {error}") from None
    return read_rows(text.splitlines(), str(path))
