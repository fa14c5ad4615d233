"""Recorded load: the trace format of Mooncake (JSON lines: timestamp in ms, lengths, hash ids of 512-token blocks).

See: Qin et al., Mooncake, FAST 2025, section 4, "Open-source traces". Two requests share a prefix as far as their hash
ids agree, so a hash id becomes a segment of its own.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, pairwise

import msgspec

from diptych.core.errors import ConfigError
from diptych.workload.session import Segment, Session, Turn

BLOCK_TOKENS = 512
"""Of the trace's hash ids."""
ROWS_BETWEEN_SEEDS = 7919
"""A prime: seeds begin far from each other."""


class TraceRow(msgspec.Struct, frozen=True):
    """One request of a trace."""

    timestamp: float
    """Milliseconds."""
    input_length: int
    output_length: int
    hash_ids: list[int]


_decode = msgspec.json.Decoder(TraceRow).decode


def read_rows(lines: Iterable[str], name: str) -> list[TraceRow]:
    """Return a trace's rows, sorted by time.

    Raises: ConfigError naming the line that is wrong.
    """
    rows: list[TraceRow] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = _decode(line)
        except msgspec.DecodeError as error:
            raise ConfigError(f"{name}, line {number}: no row of a Mooncake trace: {error}") from None
        if row.input_length < 1 or row.output_length < 0 or len(row.hash_ids) != -(-row.input_length // BLOCK_TOKENS):
            raise ConfigError(f"{name}, line {number}: a hash id for every {BLOCK_TOKENS} tokens of input is expected")
        rows.append(row)
    if not rows:
        raise ConfigError(f"{name} has no rows")
    return sorted(rows, key=lambda row: row.timestamp)


class Trace:
    """A trace to be replayed, perhaps faster and with shorter texts."""

    def __init__(self, rows: Sequence[TraceRow], length_scale: float = 1.0, max_tokens: int | None = None) -> None:
        """Keep the rows that have at most `max_tokens` tokens, prompt and answer together, after scaling.

        Which prefixes are shared stays as it was. Raises: ConfigError if no row is left.
        """
        self._length_scale = length_scale
        self._kept = [row for row in rows if max_tokens is None or self._num_tokens(row) <= max_tokens]
        if not self._kept:
            raise ConfigError(f"no row of the trace has at most {max_tokens} tokens; scale its lengths down further")
        self.num_left_out = len(rows) - len(self._kept)
        """Rows that are too long."""

    @property
    def num_rows(self) -> int:
        """Rows that are kept."""
        return len(self._kept)

    @property
    def recorded_rate_per_s(self) -> float:
        """Requests a second of what is kept, over the whole recording; infinite if all came at once."""
        duration_s = (self._kept[-1].timestamp - self._kept[0].timestamp) / 1e3
        return len(self._kept) / duration_s if duration_s > 0 else math.inf

    def sessions(self, rate_per_s: float, seed: int) -> Iterator[Session]:
        """Yield the recorded requests, as fast as asked, again from the start after the end.

        `seed` chooses the row to begin with (0: the first). Texts of a repetition are new ones.
        """
        kept = self._kept
        recorded_per_s = self.recorded_rate_per_s
        slowdown = recorded_per_s / rate_per_s if math.isfinite(recorded_per_s) else 0.0
        lap_s = len(kept) / recorded_per_s
        begin = seed * ROWS_BETWEEN_SEEDS % len(kept)
        for index in count(begin):
            lap, place = divmod(index, len(kept))
            since_begin_s = lap * lap_s + (kept[place].timestamp - kept[begin].timestamp) / 1e3
            yield Session(since_begin_s * slowdown, (self._turn(kept[place], lap),))

    def _turn(self, row: TraceRow, lap: int) -> Turn:
        borders = [self._scaled(min(index * BLOCK_TOKENS, row.input_length)) for index in range(len(row.hash_ids) + 1)]
        segments = [
            Segment((lap, hash_id), end - begin)
            for hash_id, (begin, end) in zip(row.hash_ids, pairwise(borders), strict=True)
        ]
        return Turn(tuple(segment for segment in segments if segment.num_tokens), self._num_output_tokens(row))

    def _num_tokens(self, row: TraceRow) -> int:
        return self._scaled(row.input_length) + self._num_output_tokens(row)

    def _scaled(self, num_tokens: int) -> int:
        return max(round(num_tokens * self._length_scale), 1) if num_tokens else 0

    def _num_output_tokens(self, row: TraceRow) -> int:
        return max(round(row.output_length * self._length_scale), 1)
