"""Service-level objectives: how long a client waits for the first token, and for each one after it."""

import re
from typing import Self

import msgspec

from diptych.core.errors import ConfigError

REQUIRED_ATTAINMENT = 0.9
"""Share of the offered requests that must meet an SLO (DistServe, OSDI 2024, section 2.2)."""
_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s)\s*$")


class Slo(msgspec.Struct, frozen=True, order=True):
    """Two limits; a request meets the SLO if it keeps both."""

    ttft_s: float
    """From the request's planned arrival to its first token."""
    tpot_s: float
    """Mean time of a token after the first."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `1s,50ms`.

        Raises: ConfigError.
        """
        limits = [_DURATION.match(part) for part in text.split(",")]
        if len(limits) != len(cls.__struct_fields__) or not all(limits):
            raise ConfigError(f"an SLO is written like 1s,50ms (TTFT, then TPOT), not {text!r}")
        ttft_s, tpot_s = (float(limit[1] + ("e-3" if limit[2] == "ms" else "")) for limit in limits if limit)
        if min(ttft_s, tpot_s) <= 0:
            raise ConfigError(f"the limits of an SLO are above 0, not {text!r}")
        return cls(ttft_s, tpot_s)

    def scaled(self, factor: float) -> "Slo":
        """Return limits that are `factor` times as generous."""
        return Slo(self.ttft_s * factor, self.tpot_s * factor)

    def __str__(self) -> str:
        """Write it as `parse` reads it."""
        return f"{_short(self.ttft_s)},{_short(self.tpot_s)}"


def _short(duration_s: float) -> str:
    return f"{duration_s:g}s" if duration_s >= 1 else f"{duration_s * 1e3:.3g}ms"
