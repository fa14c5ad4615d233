"""Whether a prefix is fetched from another machine or computed. Pure."""

GUESSED_BYTE_S = 1e-8
"""Of a link over which nothing has moved yet: 100 MB/s, a gigabit network."""
CAUTION = 0.5
"""Of the time of computing: a fetch is worth waiting for only if it takes less, since its link may be busy."""


def is_worth_fetching(num_bytes: int, byte_s: float, compute_s: float) -> bool:
    """Tell whether to fetch what could be computed as well; `byte_s`: of the link, 0.0 if that is not known."""
    return num_bytes * (byte_s or GUESSED_BYTE_S) < CAUTION * compute_s
