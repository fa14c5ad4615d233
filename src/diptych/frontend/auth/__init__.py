"""Who asks, what that one may ask for, and what must not be shared with others."""
