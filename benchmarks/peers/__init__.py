"""Serving systems that a user might pick instead of Diptych: how each is installed and started."""
