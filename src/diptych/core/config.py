"""What a user may set: name, default, limits and help text, in one place for flags, environment, TOML and library."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    model_validator,
)

from diptych.core.bounds import MAX_PORT, MAX_ROUTERS
from diptych.core.control import (
    AdmissionName,
    EngineKind,
    EvictionName,
    KVDtype,
    RoutingName,
    TransportName,
)
from diptych.core.logs import LogFormat, LogLevel, LogSettings

IS_NODE = "is_node"
"""In the context of validation: these are settings of a machine that joins others, which may have one phase only."""
_UNITS = {"": 1, "B": 1, "K": 10**3, "KB": 10**3, "M": 10**6, "MB": 10**6, "G": 10**9, "GB": 10**9}
_UNITS |= {"T": 10**12, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*$")


def parse_bytes(value: object) -> object:
    """Turn `512MB`, `1.5 GiB` or `1000000` into a number of bytes; leave anything that is no text alone."""
    if not isinstance(value, str):
        return value
    match = _SIZE.match(value)
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError("a size is written like 512MB, 2GB or 1GiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


Bytes = Annotated[int, BeforeValidator(parse_bytes)]


class ServeConfig(BaseModel):
    """How to serve a model on this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    model: str = Field(
        default="smollm2-135m-instruct", description="Name, folder of OpenVINO IR, GGUF file, or hub id."
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=MAX_PORT, description="Port to listen on; 0 takes a free one.")
    frontends: int = Field(
        default=1,
        ge=1,
        le=MAX_ROUTERS,
        description="Frontends, each with a router of its own, on --port and the ports after it; all use all workers.",
    )
    root_path: str = Field(
        default="",
        pattern=r"^(/[A-Za-z0-9._~-]+)*/?$",
        description="Path under which a proxy has the server, such as /llm.",
    )
    cors_origins: list[str] = Field(
        default=[], description="Web origins whose pages may call, such as https://chat.example; * for all."
    )
    api_keys: Path | None = Field(
        default=None, description="File of API keys, as `diptych key create` makes it; read again when it changes."
    )
    allow_unauthenticated: bool = Field(
        default=False, description="Listen on an address that others reach although there are no API keys."
    )
    tls_cert: Path | None = Field(default=None, description="Certificate (PEM, with its chain) to serve HTTPS with.")
    tls_key: Path | None = Field(default=None, description="The certificate's private key (PEM).")
    chat_template: Path | None = Field(
        default=None, description="File with a Jinja chat template, in place of the model's own."
    )

    prefill: int | None = Field(
        default=None, ge=0, le=256, description="Prefill workers [default: 1, or 0 with --mixed]."
    )
    decode: int | None = Field(
        default=None, ge=0, le=256, description="Decode workers [default: 1, or 0 with --mixed]."
    )
    mixed: int = Field(default=0, ge=0, le=256, description="Workers that do both in the same steps (the baseline).")
    cores: list[int] | None = Field(
        default=None, description="Cores to use, such as 0,1,2 [default: all that are allowed]."
    )

    engine: EngineKind = Field(
        default="openvino",
        description="What computes; `modeled` takes time by a cost model and answers with made-up tokens.",
    )
    modeled_time_scale: float = Field(
        default=1.0, ge=0, le=1000, description="Modeled engine: how many times the real one's time it takes; 0: none."
    )
    kv_dtype: KVDtype = Field(
        default="auto", description="Precision of the KV cache; auto is bf16 where the CPU computes in it, else f32."
    )
    kv_bytes: Bytes = Field(
        default=10**9, ge=10**5, description="Memory for all KV blocks of this machine, such as 2GB."
    )
    disk_kv_bytes: Bytes | None = Field(
        default=None,
        ge=10**6,
        description="Room on disk for KV that memory does not hold any more, such as 20GB; it survives restarts.",
    )
    disk_kv_dir: Path | None = Field(
        default=None, description="Folder for it, on a fast disk [default: kv in the cache of models]."
    )
    kv_store: str | None = Field(
        default=None,
        description="Store of KV that machines share, mooncake://HOST:PORT of its master (Mooncake Store): what one of "
        "them has computed, others load.",
    )
    max_model_len: int | None = Field(
        default=None,
        ge=2,
        description="Most tokens of prompt and answer together [default: the model's, as far as KV fits].",
    )
    max_num_seqs: int = Field(
        default=64, ge=1, le=4096, description="Most sequences with blocks at a time, a decode worker."
    )
    chunk_tokens: int = Field(default=256, ge=16, le=65536, description="Most prompt tokens a prefill step computes.")
    decode_chunk_tokens: int = Field(
        default=64, ge=16, le=65536, description="The same in a step that also continues answers, without --adaptive."
    )
    local_prefill_max_tokens: int = Field(
        default=8, ge=0, description="A decode worker reads up to this many uncached prompt tokens itself."
    )
    adaptive: bool = Field(
        default=True,
        description="Workers take on the other phase's work where that meets the SLO sooner, and chunks and batches "
        "are as large as the SLO lets them be; without, phases stay strictly apart and chunks have fixed sizes.",
    )
    slo_ttft_s: float = Field(
        default=1.0, gt=0, le=3600, description="Seconds to the first token that --adaptive plans for."
    )
    slo_tpot_s: float = Field(
        default=0.05, gt=0, le=60, description="Seconds a token after the first that --adaptive plans for."
    )
    routing: Literal["auto", RoutingName] = Field(
        default="auto",
        description="Which workers a request gets. predicted: the pair that keeps to the SLO at the least price; "
        "kv-centric: the soonest first token, long prefixes copied from others' caches (Mooncake); prefix-local: the "
        "same without copies; overlap-load: the least to compute and in use (Dynamo); least-loaded, round-robin, "
        "random: whatever is cached. auto: predicted, or overlap-load with --no-adaptive.",
    )
    routing_temperature: float = Field(
        default=0.0,
        ge=0,
        le=1000,
        description="Of overlap-load: how evenly it draws among workers of unequal cost; 0: always the cheapest.",
    )
    balancing_threshold: float = Field(
        default=2.0,
        ge=1,
        le=1e6,
        description="Of predicted and kv-centric: how many times as long as its own another worker's prefix must be "
        "for a worker to copy it.",
    )
    admission: Literal["auto", AdmissionName] = Field(
        default="auto",
        description="What to refuse (429) because it would miss the SLO for the load of others. none: nothing, it "
        "waits; early: by the load when it comes; predictive: by the load when its prompt will have been read; auto: "
        "predictive if an SLO is given, else none.",
    )
    eviction: EvictionName = Field(
        default="reuse-aware",
        description="Which cached blocks make room: the least recently used, or also by how often they came back.",
    )
    profile: Path | None = Field(
        default=None, description="Profile of this machine [default: what `diptych calibrate` has left in the cache]."
    )
    exact: bool = Field(
        default=False, description="Reuse only blocks written by prefill, so caching never changes an answer."
    )
    kv_checksums: bool = Field(
        default=False,
        description="Before every step compare all KV that it reads with what was written there (for debugging; slow).",
    )

    request_timeout_s: float = Field(
        default=600.0, gt=0, description="Most seconds from a request's arrival to its end."
    )
    queue_timeout_s: float | None = Field(
        default=None,
        gt=0,
        description="Most seconds from a request's arrival until its prompt is begun; then it gets 503 [default: "
        "--request-timeout-s].",
    )
    grant_timeout_s: float = Field(
        default=5.0,
        ge=1,
        description="Seconds without news of a prompt that another worker reads, after which that one is asked; if it "
        "does not answer for as long, it is replaced.",
    )
    client_timeout_s: float = Field(
        default=30.0,
        gt=0,
        description="Seconds in which a client must send a request's head, and its body, and in which it must read any "
        "part of its answer; then it is cut.",
    )
    drain_timeout_s: float = Field(
        default=30.0, ge=0, description="Seconds that running answers get after Ctrl-C or SIGTERM."
    )
    start_timeout_s: float = Field(default=120.0, gt=0, description="Seconds until everything must be ready.")
    max_queue: int = Field(default=1024, ge=1, description="Most requests running and waiting; further ones get 429.")

    max_connections: int = Field(
        default=4096, ge=1, description="Most open connections; one more takes an idle one's place, or gets 503."
    )

    metrics: bool = Field(default=True, description="Count requests, tokens and steps for GET /metrics (Prometheus).")

    log_format: LogFormat = Field(default="text", description="How the log looks: text for people, json for programs.")
    log_level: LogLevel = Field(default="info", description="What is logged: debug, info, warning or error.")
    slow_request_s: float | None = Field(
        default=None,
        gt=0,
        description="Log requests that take longer, with the time of each of their phases [default: none].",
    )

    cluster_listen: str | None = Field(
        default=None,
        description="HOST:PORT at which other machines join (`diptych worker --join`); needs --cluster-keys.",
    )
    cluster_keys: Path | None = Field(
        default=None, description="Folder of the keys of machines that may join, as `diptych keys` makes it."
    )
    cluster: str | None = Field(
        default=None,
        description="Ray cluster, HOST:PORT or auto, at which to start the machines of [[machines]] in --config.",
    )
    cluster_strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = Field(
        default="SPREAD", description="How Ray is to place them: on as many machines as it can, or as few."
    )
    kv_transport: TransportName = Field(
        default="auto",
        description="How KV moves between machines: tcp, or by mooncake or nixl where that is installed on both (else "
        "tcp). auto: what was measured to be best, tcp.",
    )
    transfer_host: str | None = Field(
        default=None,
        description="Address at which other machines reach this one for KV [default: the one that leads to them].",
    )
    node_timeout_s: float = Field(
        default=5.0,
        ge=1,
        description="Seconds without a word from a machine that has joined, after which its requests go on elsewhere.",
    )

    @model_validator(mode="after")
    def _fits_together(self, info: ValidationInfo) -> "ServeConfig":
        is_one_of_many = self.cluster_listen is not None or bool(info.context and info.context.get(IS_NODE))
        if self.num_decode + self.mixed == 0 and not is_one_of_many:
            raise ValueError("somebody must write answers: set --decode or --mixed to at least 1")
        if self.num_prefill and not self.num_decode and not is_one_of_many:
            raise ValueError("prefill workers need at least one decode worker: set --decode")
        if (self.cluster_listen is None) != (self.cluster_keys is None):
            raise ValueError("a cluster needs both: set --cluster-listen, and --cluster-keys (`diptych keys`)")
        if self.cluster is not None and self.cluster_listen is None:
            raise ValueError("machines that Ray starts must be able to join: set --cluster-listen and --cluster-keys")
        if self.port and self.port + self.frontends - 1 > MAX_PORT:
            raise ValueError(f"{self.frontends} frontends from port {self.port} on: there is no port above {MAX_PORT}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("HTTPS needs both: set --tls-cert and --tls-key")
        return self

    @model_validator(mode="after")
    def _can_predict(self) -> "ServeConfig":
        if self.admission in {"early", "predictive"} and not self.adaptive:
            raise ValueError(
                f"--admission {self.admission} goes by predictions, which --no-adaptive does without: leave one out"
            )
        if self.routing == "predicted" and not self.adaptive:
            raise ValueError(
                "--routing predicted lets workers take on each other's phase, which --no-adaptive rules out: "
                "leave one out"
            )
        return self

    @property
    def log(self) -> LogSettings:
        """How every process logs."""
        return LogSettings(self.log_format, self.log_level)

    @property
    def routing_name(self) -> RoutingName:
        """Which workers a request gets, the default resolved."""
        if self.routing != "auto":
            return self.routing
        return "predicted" if self.adaptive else "overlap-load"

    @property
    def admission_name(self) -> AdmissionName:
        """What is refused for the SLO, the default resolved."""
        if self.admission != "auto":
            return self.admission
        has_slo = bool(self.model_fields_set & {"slo_ttft_s", "slo_tpot_s"})
        return "predictive" if self.adaptive and has_slo else "none"

    @property
    def num_prefill(self) -> int:
        """Prefill workers, the default resolved."""
        return self.prefill if self.prefill is not None else int(self.mixed == 0)

    @property
    def num_decode(self) -> int:
        """Decode workers, the default resolved."""
        return self.decode if self.decode is not None else int(self.mixed == 0)
