"""What one core can do at best: multiply-adds in registers and caches, and reading memory. Measured with numpy's BLAS.

Run as a program (by `measure_limits`), so that BLAS starts with one thread on the core in question.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from diptych.core.errors import BenchError

MATRIX_SIZE = 1_536
READ_BYTES = 256 * 10**6
NUM_REPEATS = 7
TIMEOUT_S = 120.0
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Limits(NamedTuple):
    """Of one core."""

    flops_per_s: float
    """float32, an addition and a multiplication counted as two."""
    read_bytes_per_s: float
    """From memory, far more than the caches hold."""


def measure_limits(core: int) -> Limits:
    """Measure on `core`, in a process of its own.

    Raises: BenchError if that fails.
    """
    command = [sys.executable, "-m", "harness.limits", "--core", str(core)]
    environment = {**os.environ, **ONE_THREAD}
    done = subprocess.run(
        command, capture_output=True, timeout=TIMEOUT_S, env=environment, cwd=Path(__file__).parent.parent, check=False
    )
    if done.returncode:
        raise BenchError(f"the limits of core {core} cannot be measured: {done.stderr.decode()[-300:].strip()}")
    return msgspec.json.decode(done.stdout, type=Limits)


def _flops_per_s() -> float:
    left = np.random.default_rng(0).random((MATRIX_SIZE, MATRIX_SIZE), np.float32)
    right, product = left.copy(), np.empty_like(left)
    return max(2 * MATRIX_SIZE**3 / _seconds(lambda: np.matmul(left, right, out=product)) for _ in range(NUM_REPEATS))


def _read_bytes_per_s() -> float:
    values = np.ones(READ_BYTES // 4, np.float32)
    return max(values.nbytes / _seconds(lambda: values.dot(values)) for _ in range(NUM_REPEATS))


def _seconds(call: Callable[[], object]) -> float:
    begin_s = time.perf_counter()
    call()
    return time.perf_counter() - begin_s


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--core", type=int, required=True, help="core to measure on")
    os.sched_setaffinity(0, {parser.parse_args().core})
    print(msgspec.json.encode(Limits(_flops_per_s(), _read_bytes_per_s())).decode())


if __name__ == "__main__":
    _main()
