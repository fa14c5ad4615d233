"""What other systems' papers report, beside what the simulator makes of the same set-up. One program each."""
