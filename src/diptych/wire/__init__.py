"""How messages travel between processes: one inbox a process, many senders."""
