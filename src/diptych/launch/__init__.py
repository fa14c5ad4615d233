"""From a configuration to running processes, and back to nothing."""
