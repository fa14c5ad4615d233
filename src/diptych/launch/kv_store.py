"""Whether, and by way of which store, the workers share KV with other machines."""

from importlib.util import find_spec

from diptych.core.config import ServeConfig
from diptych.core.control import StoreOrder
from diptych.core.errors import ConfigError
from diptych.transfer.mooncake import INSTALL
from diptych.wire.border import HostPort

SCHEME = "mooncake://"


def plan_kv_store(config: ServeConfig) -> StoreOrder | None:
    """Read which store; None: none. Whether its master is there shows later: workers do without until it is.

    Raises: ConfigError if it can never be used.
    """
    if config.kv_store is None:
        return None
    if not config.kv_store.startswith(SCHEME):
        raise ConfigError(f"--kv-store: {config.kv_store!r} is not {SCHEME}HOST:PORT, such as {SCHEME}10.0.0.1:50051")
    master = HostPort.parse(config.kv_store.removeprefix(SCHEME), "--kv-store")
    if find_spec("mooncake") is None:
        raise ConfigError(f"--kv-store: Mooncake's library is not there: {INSTALL}")
    return StoreOrder(master=str(master), host=config.transfer_host or "")
