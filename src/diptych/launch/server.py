"""A running server as an object: what `diptych serve` and `diptych.serve(config)` share."""

import ssl
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import httpx

from diptych.core.config import ServeConfig
from diptych.core.errors import ConfigError, LaunchError
from diptych.core.machine_groups import MachineGroup
from diptych.frontend.tls import own_server_tls
from diptych.launch.access import Access, plan_access
from diptych.launch.cluster import RayMachines
from diptych.launch.local import LocalCluster, StartedCluster
from diptych.models import Progress, resolve
from diptych.wire.border import HostPort

STATUS_TIMEOUT_S = 10.0
HTTP_UNAUTHORIZED, HTTP_FORBIDDEN = 401, 403


class Remote(NamedTuple):
    """A running server and how to be let in."""

    url: str
    api_key: str | None = None
    tls: ssl.SSLContext | bool = True
    """Whom to trust, by default those whom the system trusts."""

    @property
    def headers(self) -> dict[str, str]:
        """What every request brings."""
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}


class Server:
    """All processes of one server. A context manager; after its end no process, socket or memory is left."""

    def __init__(
        self,
        cluster: LocalCluster,
        started: StartedCluster,
        model_name: str,
        access: Access,
        machines: RayMachines | None = None,
    ) -> None:
        self._cluster = cluster
        self._machines = machines
        self._access = access
        self.started = started
        self.model_name = model_name

    @property
    def url(self) -> str:
        """Where it listens, such as `http://127.0.0.1:8000`; OpenAI clients take this plus `/v1` as base URL."""
        return self.urls[0]

    @property
    def urls(self) -> list[str]:
        """The same of all its frontends: each serves with all workers."""
        return self.started.urls

    @property
    def needs_keys(self) -> bool:
        """Whether requests need an API key."""
        return self._access.needs_keys

    def status(self) -> dict[str, Any]:
        """Return what `diptych status --json` prints."""
        certificate = self._access.tls_cert
        tls = True if certificate is None else own_server_tls(certificate)
        return fetch_status(Remote(self.url, self._access.own_key, tls))

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the server has ended by itself (no frontend lives); tell whether it has."""
        return self._cluster.ended.wait(timeout_s)

    def close(self) -> None:
        """Finish running answers up to the drain timeout, then end everything."""
        self._cluster.stop()
        if self._machines is not None:
            self._machines.stop(0.0)  # nobody waits for their answers any more

    def kill(self) -> None:
        """End everything at once; running answers are cut off."""
        self._cluster.kill()
        if self._machines is not None:
            self._machines.kill()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close, or kill if the body failed."""
        if kind is None:
            self.close()
        else:
            self.kill()


def serve(
    config: ServeConfig | None = None,
    *,
    api_key: str | None = None,
    machines: Sequence[MachineGroup] = (),
    progress: Progress | None = None,
    on_stage: Callable[[str], None] = lambda _: None,
) -> Server:
    """Serve a model on this machine; return when requests can be sent.

    `machines`: what Ray is to start at `config.cluster`. `api_key`: one that opens the server besides those of
    `config.api_keys`, and may do anything. `progress` shows fetching and converting the model, `on_stage` hears of each
    stage of the start.

    Raises: ModelError, ConfigError, LaunchError; nothing is left running.
    """
    config = config or ServeConfig()
    access = plan_access(config, api_key)
    model = resolve(config.model, progress=progress)
    ray_machines = _plan_machines(config, machines)
    cluster = LocalCluster(config, model, access)
    started = cluster.start(on_stage)
    if ray_machines is not None:
        on_stage("starting machines on Ray")
        try:
            ray_machines.start(config.start_timeout_s)
        except BaseException:
            cluster.kill()
            raise
    return Server(cluster, started, model.name, access, ray_machines)


def _plan_machines(config: ServeConfig, groups: Sequence[MachineGroup]) -> RayMachines | None:
    """Raises: ConfigError, LaunchError if Ray cannot start what is asked for."""
    if config.cluster is None or config.cluster_listen is None:
        return None
    if not groups:
        raise ConfigError("--cluster: nothing is to be started; say what in [[machines]] of --config FILE")
    router = HostPort.parse(config.cluster_listen, "--cluster-listen")
    if router.host in {"0.0.0.0", "::"}:  # noqa: S104  it is refused
        raise ConfigError(f"--cluster-listen: {router.host} is no address at which other machines find this one")
    return RayMachines(config.cluster, router, groups, config.cluster_strategy)


def fetch_status(remote: Remote) -> dict[str, Any]:
    """Ask a running server for its status.

    Raises: LaunchError if none answers there, or it wants (another) key.
    """
    url = remote.url
    try:
        answer = httpx.get(
            f"{url.rstrip('/')}/diptych/status", headers=remote.headers, verify=remote.tls, timeout=STATUS_TIMEOUT_S
        )
        answer.raise_for_status()
        content: dict[str, Any] = answer.json()
    except httpx.HTTPStatusError as error:
        if error.response.status_code in {HTTP_UNAUTHORIZED, HTTP_FORBIDDEN}:
            raise LaunchError(f"{url} wants an API key: {reason_of(error.response)}") from None
        raise LaunchError(f"{url} answers, but not like a Diptych server ({error.response.status_code})") from None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise no_answer(url, error) from None
    return content


def order_worker(
    remote: Remote, worker: str, action: str, body: dict[str, Any], timeout_s: float = STATUS_TIMEOUT_S
) -> dict[str, Any]:
    """Ask a running server to do something with a worker: `drain`, `start` or `profile`.

    Raises: LaunchError if none answers there, or it refuses.
    """
    return _order(remote, f"workers/{worker}/{action}", body, timeout_s)


def order_node(remote: Remote, node: str, action: str) -> dict[str, Any]:
    """Ask a running server to do something with a machine that has joined: `drain`.

    Raises: LaunchError if none answers there, or it refuses.
    """
    return _order(remote, f"nodes/{node}/{action}", {}, STATUS_TIMEOUT_S)


def _order(remote: Remote, path: str, body: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    address = f"{remote.url.rstrip('/')}/diptych/{path}"
    try:
        answer = httpx.post(address, json=body, headers=remote.headers, verify=remote.tls, timeout=timeout_s)
        content: dict[str, Any] = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise no_answer(remote.url, error) from None
    if answer.is_error:
        raise LaunchError(reason_of(answer))
    return content


def no_answer(url: str, error: Exception) -> LaunchError:
    """Return what a user reads when nobody could be asked at `url`."""
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return LaunchError(
            f"the certificate of {url} is not trusted here ({error}); if it is yours, pass --ca-cert FILE"
        )
    return LaunchError(f"no Diptych server answers at {url} ({error}); is it running? give its --url")


def reason_of(refusal: httpx.Response) -> str:
    """Return what a server says of its refusal, which has been read."""
    try:
        return str(refusal.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return f"status {refusal.status_code}"
