"""Settings of a machine that joins a cluster: most are the router's, so that all machines do the same."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from diptych.core.config import IS_NODE, ServeConfig
from diptych.core.errors import ConfigError

SHARED_SETTINGS = (
    "frontends",
    "model",
    "engine",
    "modeled_time_scale",
    "kv_dtype",
    "max_num_seqs",
    "chunk_tokens",
    "decode_chunk_tokens",
    "local_prefill_max_tokens",
    "adaptive",
    "slo_ttft_s",
    "slo_tpot_s",
    "exact",
    "kv_checksums",
    "kv_transport",
    "eviction",
    "kv_store",
    "request_timeout_s",
    "queue_timeout_s",
    "grant_timeout_s",
    "node_timeout_s",
)
"""Of which a machine that joins does what the router's says. All others are its own, or the frontend's alone."""

Setting = str | int | float | bool | None


def shared_settings(config: ServeConfig) -> dict[str, Setting]:
    """Return what all machines of a cluster are told."""
    dumped = config.model_dump(mode="json", include=set(SHARED_SETTINGS))
    return {name: dumped[name] for name in SHARED_SETTINGS}


def node_config(shared: Mapping[str, Setting], max_model_len: int, own: Mapping[str, Any]) -> ServeConfig:
    """Return the settings of a machine that joins: `own` (None: not given) before those of the router.

    Raises: ConfigError if they do not fit together.
    """
    given = {name: value for name, value in own.items() if value is not None}
    merged = {**shared, "max_model_len": max_model_len, **given}
    try:
        config = ServeConfig.model_validate(merged, context={IS_NODE: True})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        text = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"--{where.replace('_', '-')}: {text}" if where else text) from None
    if config.num_prefill + config.num_decode + config.mixed == 0:
        raise ConfigError("a machine that joins needs workers: set --prefill, --decode or --mixed")
    return config
