"""A running server as an object: what `diptych serve` and `diptych.serve(config)` share."""

import ssl
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Self

import httpx

from diptych.core.config import ServeConfig
from diptych.core.errors import LaunchError
from diptych.frontend.tls import own_server_tls
from diptych.launch.access import Access, plan_access
from diptych.launch.local import LocalCluster, StartedCluster
from diptych.models import Progress, resolve

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

    def __init__(self, cluster: LocalCluster, started: StartedCluster, model_name: str, access: Access) -> None:
        self._cluster = cluster
        self._access = access
        self.started = started
        self.model_name = model_name

    @property
    def url(self) -> str:
        """Where it listens, such as `http://127.0.0.1:8000`; OpenAI clients take this plus `/v1` as base URL."""
        return self.started.url

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
        """Wait until the server has ended by itself (its frontend died); tell whether it has."""
        return self._cluster.ended.wait(timeout_s)

    def close(self) -> None:
        """Finish running answers up to the drain timeout, then end everything."""
        self._cluster.stop()

    def kill(self) -> None:
        """End everything at once; running answers are cut off."""
        self._cluster.kill()

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
    progress: Progress | None = None,
    on_stage: Callable[[str], None] = lambda _: None,
) -> Server:
    """Serve a model on this machine; return when requests can be sent.

    `api_key`: one that opens the server besides those of `config.api_keys`, and may do anything. `progress`
    shows fetching and converting the model, `on_stage` hears of each stage of the start.

    Raises: ModelError, ConfigError, LaunchError; nothing is left running.
    """
    config = config or ServeConfig()
    access = plan_access(config, api_key)
    model = resolve(config.model, progress=progress)
    cluster = LocalCluster(config, model, access)
    return Server(cluster, cluster.start(on_stage), model.name, access)


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
    address = f"{remote.url.rstrip('/')}/diptych/workers/{worker}/{action}"
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
