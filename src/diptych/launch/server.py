"""A running server as an object: what `diptych serve` and `diptych.serve(config)` share."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import httpx

from diptych.core.config import ServeConfig
from diptych.core.errors import LaunchError
from diptych.launch.local import LocalCluster, StartedCluster
from diptych.models import Progress, resolve

STATUS_TIMEOUT_S = 10.0


class Server:
    """All processes of one server. A context manager; after its end no process, socket or memory is left."""

    def __init__(self, cluster: LocalCluster, started: StartedCluster, model_name: str) -> None:
        self._cluster = cluster
        self.started = started
        self.model_name = model_name

    @property
    def url(self) -> str:
        """Where it listens, such as `http://127.0.0.1:8000`; OpenAI clients take this plus `/v1` as base URL."""
        return self.started.url

    def status(self) -> dict[str, Any]:
        """Return what `diptych status --json` prints."""
        return fetch_status(self.url)

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
    progress: Progress | None = None,
    on_stage: Callable[[str], None] = lambda _: None,
) -> Server:
    """Serve a model on this machine; return when requests can be sent.

    `progress` shows fetching and converting the model, `on_stage` hears of each stage of the start.

    Raises: ModelError, ConfigError, LaunchError; nothing is left running.
    """
    config = config or ServeConfig()
    model = resolve(config.model, progress=progress)
    cluster = LocalCluster(config, model)
    return Server(cluster, cluster.start(on_stage), model.name)


def fetch_status(url: str) -> dict[str, Any]:
    """Ask a running server for its status.

    Raises: LaunchError if none answers there.
    """
    try:
        answer = httpx.get(f"{url.rstrip('/')}/diptych/status", timeout=STATUS_TIMEOUT_S)
        answer.raise_for_status()
        content: dict[str, Any] = answer.json()
    except httpx.HTTPStatusError as error:
        raise LaunchError(f"{url} answers, but not like a Diptych server ({error.response.status_code})") from None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise LaunchError(f"no Diptych server answers at {url} ({error}); is it running? give its --url") from None
    return content


def order_worker(url: str, worker: str, action: str, body: dict[str, Any]) -> dict[str, Any]:
    """Ask a running server to do something with a worker: `drain` or `start`.

    Raises: LaunchError if none answers there, or it refuses.
    """
    try:
        answer = httpx.post(f"{url.rstrip('/')}/diptych/workers/{worker}/{action}", json=body, timeout=STATUS_TIMEOUT_S)
        content: dict[str, Any] = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise LaunchError(f"no Diptych server answers at {url} ({error}); is it running? give its --url") from None
    if answer.is_error:
        raise LaunchError(content["error"]["message"] if "error" in content else f"{url} answers {answer.status_code}")
    return content
