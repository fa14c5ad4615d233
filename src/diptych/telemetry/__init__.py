"""What can be seen of a server from outside: metrics, traces, and the lines of its log that sum up.

Everything follows from the lifecycle events of requests that have ended (core/events.py), from what was refused, and
from workers' heartbeats. The router tells of them (`diptych.router.ports.Observer`); nothing here is asked for a token.
"""
