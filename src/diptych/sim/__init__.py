"""A cluster in virtual time: the live router, policies and prefix caches, and workers that only know what time costs.

`SimulatedCluster` (cluster.py) is what others use: give it requests, get what became of each. What is simulated is a
`ClusterPlan` (plan.py). It runs on simpy, so events at one moment come in the order in which they were made, and the
same input gives the same output to the last bit. Steps between which nothing changes are one event (run.py), so an
answer costs about as much however long it is.
"""
