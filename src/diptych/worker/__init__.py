"""One process that computes: a loop that reads its inbox, plans a step, runs it, and tells the others."""
