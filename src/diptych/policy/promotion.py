"""Whether blocks in a slower store are worth waiting for. Pure."""

ASK_PATIENCE_S = 0.1
"""How long a prompt waits to hear what a store has of it that must be asked: there it takes a millisecond or two."""
PATIENCE = 1.0
"""How many times as long as computing a load may take before it is given up: so a disk that suddenly hangs costs a
request no more than as much time again as it would have taken without, plus the grace."""
GRACE_S = 0.1
"""For small loads, whose time is mostly that of waking threads."""


def is_worth_loading(load_s: float, compute_s: float) -> bool:
    """Tell whether to load what could be computed as well, by the predicted times of both."""
    return load_s < compute_s


def load_patience_s(compute_s: float) -> float:
    """Return how long to wait for a load in place of computing for `compute_s`."""
    return GRACE_S + PATIENCE * compute_s
