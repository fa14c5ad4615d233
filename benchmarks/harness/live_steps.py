"""How long live workers' steps took in a run, besides how long they should have taken by the machine's profile."""

STEP_TIMES = "step_times"
"""Where `benchmarks/live_runs.py` keeps them: a setting of its results, one entry a run."""

StepTimes = dict[str, dict[str, float]]
"""By worker: seconds `taken_s` and `expected_s`."""


def slowness(times: dict[str, float]) -> float:
    """Return how many times as long a worker's steps took as expected; 1 where it did nothing."""
    return times["taken_s"] / times["expected_s"] if times["expected_s"] > 0 else 1.0
