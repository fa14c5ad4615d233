"""A cluster to simulate, as a person writes it down: a TOML file, checked key by key.

`read_config` reads it; `diptych.sim.assembly.cluster_plan` turns it into what the simulator takes.
"""

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from diptych.core.control import AdmissionName, EvictionName, RoutingName
from diptych.core.errors import ConfigError
from diptych.core.messages import Role
from diptych.hardware.estimate import CostSource
from diptych.sim.plan import Batching


def _number_of(value: object) -> object:
    """Let whole floats pass as numbers of things: TOML writes 1e6 as a float."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Number = Annotated[int, BeforeValidator(_number_of)]


class Table(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SloTable(Table):
    """`[slo]`: what requests shall keep to; routing and admission are told, too."""

    ttft_s: float = Field(gt=0)
    tpot_s: float = Field(gt=0)


class RouterTable(Table):
    """`[router]`: as for `diptych serve`, where these are flags."""

    routing: RoutingName = "overlap-load"
    admission: AdmissionName = "none"
    max_queue: Number = Field(default=1_000_000, ge=1)
    local_prefill_max_tokens: Number = Field(default=32, ge=0)
    balancing_threshold: float = Field(default=2.0, ge=1)
    routing_temperature: float = Field(default=0.0, ge=0)


class PoolTable(Table):
    """`[[pool]]`: workers that are alike; either `hardware` and `model`, or `profile`, says how long steps take."""

    role: Role
    workers: Number = Field(ge=1, le=100_000)

    hardware: str | None = None
    """A device of `diptych.hardware.specs`."""
    model: str | None = None
    """A shape of `diptych.hardware.models`."""
    tensor_parallel: Number = Field(default=1, ge=1)
    pipeline_parallel: Number = Field(default=1, ge=1)
    stage_gbit_per_s: float | None = Field(default=None, gt=0)
    """Of the network between pipeline stages that stand on several machines; None: the devices' own link."""
    costs: CostSource = "auto"

    profile: Path | None = None
    """What `diptych calibrate` has written; relative to the file."""
    cores: Number = Field(default=1, ge=1)
    """Of each worker, with `profile`."""

    kv_tokens: Number | None = Field(default=None, ge=1)
    """Whose KV one worker holds. With `hardware`: what fits beside the weights, if nothing is said."""
    machines: Number = Field(default=1, ge=1)
    """Over which the workers are spread in turn; the first one is the other pools' first one, too."""
    first_machine: Number = Field(default=0, ge=0)
    """Its number: pools that share no machine have different ones."""
    batching: Batching = "chunked"
    chunk_tokens: Number = Field(default=2048, ge=16)
    decode_chunk_tokens: Number = Field(default=512, ge=16)
    max_num_seqs: Number = Field(default=256, ge=1)
    eviction: EvictionName = "reuse-aware"
    copy_bytes_per_s: float | None = Field(default=None, gt=0)
    """At which prefixes are copied from other workers' caches; None: at once."""
    step_extra_s: float = Field(default=0.0, ge=0)
    batch_change_s: float | None = Field(default=None, ge=0)
    """Of a step with another number of rows or tokens than the last one; None: what a profile says, else nothing."""
    usd_per_hour: float | None = Field(default=None, ge=0)
    """Of one worker; with `hardware`: what its devices cost, if nothing is said."""

    @model_validator(mode="after")
    def _has_costs(self) -> "PoolTable":
        if (self.profile is None) == (self.hardware is None):
            raise ValueError("say how long steps take: `hardware` with `model`, or else `profile`")
        if self.hardware is not None and self.model is None:
            raise ValueError("`hardware` needs `model`: which one it computes")
        if self.stage_gbit_per_s is not None and self.pipeline_parallel == 1:
            raise ValueError(
                "`stage_gbit_per_s` is between pipeline stages: it needs a `pipeline_parallel` of 2 or more"
            )
        if self.profile is not None and self.kv_tokens is None and self.role is not Role.PREFILL:
            raise ValueError("with `profile`, `kv_tokens` says how many tokens' KV a worker holds")
        return self


class LinkTable(Table):
    """`[link]`: between machines."""

    gbit_per_s: float = Field(gt=0)
    latency_us: float = Field(default=20.0, ge=0)
    overlap: bool = True
    """Whether a chunk's KV leaves while the next one is computed."""
    kv_bytes_per_token: float | None = Field(default=None, gt=0)
    """None: the model's, where pools have one."""


class TierTable(Table):
    """`[tier]`: a store below memory, one on each machine."""

    kv_tokens: Number = Field(ge=1)
    """Whose KV it holds."""
    tokens_per_s: float = Field(gt=0)
    """Whose KV it loads in a second."""


class FailuresTable(Table):
    """`[failures]`: how often each worker dies, and for how long it is down."""

    mean_hours_between: float = Field(gt=0)
    down_s: float = Field(gt=0)


class EventTable(Table):
    """`[[event]]`: at a moment, a worker dies or gets another role."""

    at_s: float = Field(ge=0)
    worker: str
    what: Literal["dies", "prefill", "decode", "mixed"]
    down_s: float | None = Field(default=None, gt=0)
    """Of one that dies; None: for good."""


class InterferenceTable(Table):
    """`[interference]`: how many times as long steps take beside the other phase on one machine."""

    decode_factor: float = Field(ge=1)
    prefill_factor: float = Field(ge=1)


class SimulationConfig(Table):
    """The whole file."""

    block_tokens: Number = Field(default=512, ge=1, le=65_536)
    max_model_len: Number | None = Field(default=None, ge=2)
    """None: the model's, or what the smallest owner of blocks holds."""
    max_tokens: Number = Field(default=4096, ge=1)
    """Of an answer; longer ones end there."""
    units: Number = Field(default=1, ge=1, le=10_000)
    """How many clusters like this one there are, each with a router of its own; conversations come to them in turn."""
    accept_ms: float = Field(default=0.0, ge=0)
    """From a request's arrival to the router."""
    message_ms: float = Field(default=0.1, gt=0)
    """Of each message between router and workers."""
    patience_s: float | None = Field(default=None, gt=0)
    """Of clients; None: they wait."""
    slo: SloTable
    router: RouterTable = RouterTable()
    pool: list[PoolTable] = Field(min_length=1)
    link: LinkTable | None = None
    tier: TierTable | None = None
    failures: FailuresTable | None = None
    event: list[EventTable] = []
    interference: InterferenceTable | None = None

    @model_validator(mode="after")
    def _can_serve(self) -> "SimulationConfig":
        roles = {pool.role for pool in self.pool}
        if roles == {Role.PREFILL}:
            raise ValueError("somebody must write answers: add a [[pool]] of role decode or mixed")
        if Role.DECODE in roles and Role.PREFILL not in roles and Role.MIXED not in roles:
            # A decode worker reads prompts itself where nobody else does; that is rarely meant.
            raise ValueError("nobody reads prompts: add a [[pool]] of role prefill, or make this one mixed")
        return self


def read_config(path: Path) -> SimulationConfig:
    """Read a cluster.

    Raises: ConfigError naming the key that is wrong, and what it may be.
    """
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read the cluster {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML: {error}") from None
    try:
        return SimulationConfig.model_validate(table)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    """Return the first mistake by the name of its key; a misspelt key before the one that is missing for it."""
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    key = "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).removeprefix(".")
    if first["type"] == "extra_forbidden":
        return f"unknown key `{key}`{_hint(first['loc'])}"
    if first["type"] == "missing":
        return f"`{key}` is missing"
    text = first["msg"].removeprefix("Value error, ")
    return f"`{key}`: {text}, not {first['input']!r}" if first["type"] != "value_error" else _prefixed(key, text)


def _prefixed(key: str, text: str) -> str:
    return f"`{key}`: {text}" if key else text


_TABLES: dict[str, type[Table]] = {
    "slo": SloTable,
    "router": RouterTable,
    "pool": PoolTable,
    "link": LinkTable,
    "tier": TierTable,
    "failures": FailuresTable,
    "event": EventTable,
    "interference": InterferenceTable,
}


def _hint(place: tuple[Any, ...]) -> str:
    """Say what may stand at a place where an unknown key stands."""
    names = [part for part in place if isinstance(part, str)]
    known = _TABLES[names[0]] if len(names) > 1 else SimulationConfig
    close = difflib.get_close_matches(names[-1], known.model_fields, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known.model_fields)}"
