"""How a benchmark fails: with one line, like everything else."""

from diptych.core.errors import DiptychError


class BenchmarkError(DiptychError):
    """A measurement cannot be made or means nothing; no result was written."""
