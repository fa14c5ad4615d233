"""What the frontend must be told: fixed for its whole life."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendSettings:
    """Limits and names of one frontend."""

    model_name: str
    """The one name that clients may ask for."""
    max_model_len: int
    """Most tokens of prompt and answer together."""
    request_timeout_s: float = 600.0
    """From the whole HTTP request read to the last byte of the answer sent."""
    max_body_bytes: int = 4_000_000
    """A longer HTTP body gets 413."""
    body_timeout_s: float = 30.0
    """A body that takes longer to arrive gets 408."""
    max_in_flight_requests: int = 4096
    """POSTs being read, served or sent at one time; one more gets 429."""
