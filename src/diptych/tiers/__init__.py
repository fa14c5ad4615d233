"""KV below the workers' own blocks: slower, larger, and still there after a restart."""
