"""Measuring servers from the outside: open-loop load over HTTP, the goodput at given SLOs, and reports of both.

    workload (what, when) --> load (over http_client) --> samples --> summary, search, report

Works against any server that speaks OpenAI's API, ours or not, and counts what a client counts: a request that was
refused or failed is a request that missed its SLO.
"""
