"""How KV gets from the worker that computes it to the worker that uses it. On one machine: both map the same memory."""
