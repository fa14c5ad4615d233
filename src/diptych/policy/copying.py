"""Whether to copy a prefix from another worker's cache, and how fast. Pure.

A copy takes a fraction of the time that computing takes, but it is not free: it uses the memory bandwidth and the core
of the worker that does it. So it is done in slices beside the worker's steps, each as long as a step bears.
"""

GUESSED_COPY_BLOCK_S = 2e-4
"""Of a worker that has not said how long it takes: 0.7 MB at a few GB/s."""
STEP_SHARE = 0.06
"""Of the time of a step, what a slice may take of its core. A running answer's next token shall be late by a tenth at
most, and what a slice displaces from the caches costs the step about half as much again."""
IDLE_SLICE_S = 2e-3
"""At a time while no step is running: messages wait no longer."""
CAUTION = 0.8
"""Of what a slice may take, by the mean speed: some are slower."""
PIECE_BYTES = 2**17
"""Between two looks whether a slice has to end: some ten microseconds."""


def slice_bytes(limit_s: float, byte_s: float) -> int:
    """Return how much may be copied within `limit_s`, at `byte_s` a byte."""
    return int(CAUTION * limit_s / max(byte_s, 1e-15))


def predict_copy_s(num_blocks: int, copy_block_s: float, *, is_writing: bool) -> float:
    """Return how long a copy takes; beside answers that are being written it gets a small share of the time only."""
    alone_s = num_blocks * copy_block_s
    return alone_s / (CAUTION * STEP_SHARE) if is_writing else alone_s


def is_much_longer(num_there: int, num_here: int, balancing_threshold: float) -> bool:
    """Tell whether another worker's prefix is so much longer than the owner's that it may be worth a copy.

    See: Mooncake (Qin et al., FAST 2025; arXiv 2407.00079), algorithm 1, kvcache_balancing_threshold.
    """
    return num_there > num_here * balancing_threshold
