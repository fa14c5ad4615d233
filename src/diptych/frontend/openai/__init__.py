"""What clients send and what they get: the bodies of OpenAI's API, and vLLM's additions to it.

Requests are checked field by field: types are strict (no number in a string), unknown fields are errors, and a field
that is known but not served must be off (`unsupported.py`). Nothing is silently ignored.
"""
