"""What every other part shares: ids, errors, the clock, requests, messages, configuration. No I/O."""
