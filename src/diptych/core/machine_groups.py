"""Which machines' workers to have Ray start: the tables `[[machines]]` of a configuration file."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from diptych.core.config import Bytes
from diptych.core.config_sources import MACHINES_TABLE, read_toml
from diptych.core.errors import ConfigError


class MachineGroup(BaseModel):
    """Agents that are alike. Each is placed on a machine that has its resources to spare, and keeps them."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$", description="Its agents are NAME-0 and so on.")
    count: int = Field(default=1, ge=1, le=256)
    keys: Path = Field(description="Folder of keys, on each machine (`diptych keys`).")
    prefill: int | None = Field(default=None, ge=0, le=256)
    decode: int | None = Field(default=None, ge=0, le=256)
    mixed: int | None = Field(default=None, ge=0, le=256)
    model: str | None = None
    cores: list[int] | None = None
    kv_bytes: Bytes | None = None
    disk_kv_bytes: Bytes | None = None
    disk_kv_dir: Path | None = None
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={"CPU": 1.0}, description="Of Ray's: CPU, and names that machines were given (`ray start --resources`)."
    )

    @property
    def agents(self) -> list[str]:
        """What the machines of its agents are called."""
        return [f"{self.name}-{number}" for number in range(self.count)]

    @property
    def settings(self) -> dict[str, Any]:
        """Those of `diptych worker` that are not the router's, in plain types; None: not given."""
        return self.model_dump(mode="json", exclude={"name", "count", "keys", "resources"})


def read_machine_groups(path: Path | None) -> list[MachineGroup]:
    """Return the groups that a configuration file asks for.

    Raises: ConfigError.
    """
    tables = read_toml(path).get(MACHINES_TABLE, []) if path is not None else []
    if not isinstance(tables, list):
        raise ConfigError(f"{path}: write [[{MACHINES_TABLE}]], in two brackets, before each group of machines")
    try:
        groups = [MachineGroup.model_validate(table) for table in tables]
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: [[{MACHINES_TABLE}]]: {where}: {first['msg']}") from None
    names = [group.name for group in groups]
    if len(set(names)) != len(names):
        raise ConfigError(f"{path}: [[{MACHINES_TABLE}]]: two groups have the same name")
    return groups
