"""How this machine's workers exchange KV with those of other machines: address, secret, transports."""

from diptych.core.config import ServeConfig
from diptych.core.control import TransferOrder
from diptych.core.errors import ConfigError
from diptych.transfer.base import INLINE
from diptych.wire.border import HostPort
from diptych.wire.cluster_keys import read_head_keys, transfer_secret

BEST_TRANSPORTS = (INLINE,)
"""As measured, the best first (docs/cluster.md)."""


def head_transfer(config: ServeConfig) -> TransferOrder | None:
    """Return what workers on the router's machine are told; None: no machine may join. Raises: ConfigError."""
    if config.cluster_listen is None or config.cluster_keys is None:
        return None
    keys, _ = read_head_keys(config.cluster_keys)
    return TransferOrder(
        host=config.transfer_host or HostPort.parse(config.cluster_listen, "--cluster-listen").host,
        reached_at=config.transfer_host or "",
        router_host="",
        secret=transfer_secret(keys),
        transports=_transports(config),
    )


def node_transfer(config: ServeConfig, router: HostPort, secret: str) -> TransferOrder:
    """Return what workers on a machine that joins `router` are told. Raises: ConfigError."""
    host = config.transfer_host or _address_towards(router)
    return TransferOrder(
        host=host, reached_at=host, router_host=router.host, secret=secret, transports=_transports(config)
    )


def _transports(config: ServeConfig) -> list[str]:
    chosen = config.kv_transport
    return list(BEST_TRANSPORTS) if chosen == "auto" else list(dict.fromkeys((chosen, INLINE)))


def _address_towards(others: HostPort) -> str:
    """Return the address that this machine has for those at another."""
    try:
        return others.own_address()
    except OSError as error:
        raise ConfigError(
            f"no way leads from here to {others} ({error.strerror}); set --transfer-host to the address at which other "
            "machines reach this one"
        ) from None
