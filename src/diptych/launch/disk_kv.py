"""Whether, where and how much KV the workers may keep on disk."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from diptych.core.config import ServeConfig
from diptych.core.control import DiskOrder
from diptych.core.errors import ConfigError, TierError
from diptych.core.ids import WorkerId
from diptych.core.messages import Role
from diptych.models import default_cache_dir
from diptych.tiers.files import PrivateFiles

FOLDER_NAME = "kv"


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """What all workers that write answers share."""

    order: DiskOrder
    """Of each of them."""
    is_direct: bool
    """Whether files go past the page cache."""

    @property
    def description(self) -> str:
        """For people."""
        how = "past the page cache" if self.is_direct else "by the page cache, since the file system has no O_DIRECT"
        total_bytes = self.order.limit_bytes * self.order.num_sharers
        return f"up to {total_bytes / 1e9:.2f} GB of KV are kept in {self.order.folder}, {how}"


def default_disk_kv_dir() -> Path:
    """Return where KV goes if nobody says otherwise."""
    return default_cache_dir() / FOLDER_NAME


def plan_disk_kv(config: ServeConfig, roles: Mapping[WorkerId, Role]) -> DiskPlan | None:
    """Look whether the folder can be used, and share its room out; None: no KV goes to disk.

    Raises: ConfigError if it cannot be used.
    """
    if config.disk_kv_bytes is None:
        return None
    num_sharers = sum(role is not Role.PREFILL or config.adaptive for role in roles.values())
    folder = (config.disk_kv_dir or default_disk_kv_dir()).expanduser().absolute()
    try:
        is_direct = PrivateFiles(folder).is_direct
    except TierError as error:
        raise ConfigError(f"--disk-kv-dir: {error}") from None
    order = DiskOrder(folder=str(folder), limit_bytes=config.disk_kv_bytes // num_sharers, num_sharers=num_sharers)
    return DiskPlan(order, is_direct)
