"""A line on stderr for each run of a measurement."""

import sys

from diptych.bench.summary import RunSummary


class Lines:
    """Says on stderr how far it is."""

    def __init__(self, title: str) -> None:
        self._title = title

    def on_stage(self, text: str) -> None:
        """Say nothing: the end of a run is what counts."""

    def on_ended(self, num_ended: int, num_expected: int) -> None:
        """Move on in the line."""
        print(f"\r{self._title}: {num_ended} of {num_expected} requests ", end="", file=sys.stderr, flush=True)

    def on_run(self, target: str, seed: int, summary: RunSummary) -> None:
        """Leave a line."""
        shares = ", ".join(f"{found.share:.0%} within {found.slo}" for found in summary.attainments)
        print(f"\r{self._title}: {summary.rate_per_s:.3g} requests/s, {shares}          ", file=sys.stderr)
