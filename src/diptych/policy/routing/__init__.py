"""Who owns a request and who reads its prompt: policies by name (by_name.py), all with one signature. Pure.

Step 2 of a request's life. Whoever routes (the live router, a simulator, a replay of a trace) makes snapshots of all
workers, asks, and does what the answer says (question.py).

Here a request's KV, and the prefix cache with it, is its owner's: the worker that writes the answer. A prefill worker
is a visitor in the owner's blocks and caches nothing. So where other systems speak of the prefix that a prefill
instance holds, it is the owner's here, and its queue is that of the reader; where a worker is both, it is the same.
Only a reader on another machine than the owner computes in blocks of its own, and has a prefix of its own to begin with
(policy/nodes.py).

Invariants, of every policy: a worker that is not accepting is never chosen; the order of the snapshots does not matter;
a prompt of which little is uncached is read by its owner (conditional disaggregation), since appending a few tokens to
a running batch costs less than a hand-over.
"""
