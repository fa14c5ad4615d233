"""How long things take on a machine, as numbers and formulas. Pure."""
