"""What the frontend must be told: fixed for its whole life."""

from dataclasses import dataclass, field
from pathlib import Path

from diptych.core.api_keys import ApiKey
from diptych.core.slo import Slo
from diptych.core.version import __version__
from diptych.frontend.connections import ConnectionLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendSettings:
    """Limits and names of one frontend."""

    model_name: str
    """The one name that clients may ask for."""
    max_model_len: int
    """Most tokens of prompt and answer together."""
    model_key: str = ""
    """Names the weights."""
    eos_token_ids: frozenset[int] = frozenset()
    chat_template: str | None = None
    """In place of the model's own; Jinja."""
    root_path: str = ""
    """Under which a proxy has this server, such as `/llm`; empty: none."""
    cors_origins: tuple[str, ...] = ()
    """Web pages of these origins may call; `*`: of all. Empty: none."""
    api_keys: tuple[ApiKey, ...] = ()
    """Keys that open the server for as long as it runs."""
    api_key_file: Path | None = None
    """More of them, as the file says at any time. Neither: whoever can connect may ask."""
    slo: Slo = field(default=Slo(1.0, 0.05))
    """What is told to those who watch; the server plans for it elsewhere."""
    request_timeout_s: float = 600.0
    """From the whole HTTP request read to the last byte of the answer sent."""
    max_body_bytes: int = 4_000_000
    """A longer HTTP body gets 413."""
    client_timeout_s: float = 30.0
    """A head, or a body, that takes longer to arrive gets 408; a client that reads nothing for as long is cut."""
    max_connections: int = 4096
    """Open at one time; one more takes the place of an idle one, or gets 503."""
    max_in_flight_requests: int = 4096
    """POSTs being read, served or sent at one time; one more gets 429."""

    @property
    def has_keys(self) -> bool:
        """Whether requests need an API key."""
        return bool(self.api_keys) or self.api_key_file is not None

    @property
    def connection_limits(self) -> ConnectionLimits:
        """What concerns connections, whatever is asked on them."""
        return ConnectionLimits(self.max_connections, self.client_timeout_s)

    @property
    def system_fingerprint(self) -> str:
        """What answers of a seed depend on besides the request: software and weights."""
        return f"diptych-{__version__}-{self.model_key[:8] or 'unknown'}"
