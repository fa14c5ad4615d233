"""Decisions as pure functions: which workers, which batch, whether at all.

No function here does I/O, reads a clock or keeps anything between calls: it gets frozen snapshots and returns a choice,
so the live cluster and the simulator make the same decisions from the same numbers, and a test can ask any question.
"""
