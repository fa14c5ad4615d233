"""KV blocks as bookkeeping: what a block looks like, what its content is called, who uses it. No I/O, no clock."""
