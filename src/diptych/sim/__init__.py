"""A cluster in virtual time: the live router, policies and prefix caches, and workers that only know what time costs.

`SimulatedCluster` (cluster.py) is what others use: give it requests, get what became of each. It runs on simpy, so
events at one moment come in the order in which they were made, and the same input gives the same output to the last
bit. Needs the extra `sim`.
"""
