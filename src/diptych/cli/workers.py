"""`diptych drain` and `diptych restart`: take workers of a running server out of service and back, losing nothing."""

import time
from typing import Annotated, Any

import typer
from rich.console import Console

from diptych.cli.status import DEFAULT_URL, ApiKey, CaCert, Url, remote_of
from diptych.core.errors import LaunchError
from diptych.launch.server import Remote, fetch_status, order_worker

POLL_S = 0.1
GONE_GRACE_S = 15.0
"""How much longer than its drain a worker may take to end."""
UP_TIMEOUT_S = 180.0
Timeout = Annotated[
    float, typer.Option("--timeout-s", min=0, help="Seconds after which what still runs goes on elsewhere.")
]


def drain_command(
    worker: Annotated[str, typer.Argument(help="Such as decode-0; `diptych status` lists them.")],
    timeout_s: Timeout = 30.0,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    ca_cert: CaCert = None,
) -> None:
    """Take a worker out of service: nothing new goes there, running answers end or go on elsewhere.

    Returns when its process has ended. `diptych restart WORKER` starts it again.
    """
    console, remote = Console(stderr=True), remote_of(url, api_key, ca_cert)
    with console.status(f"draining {worker}"):
        incarnation = _begin_drain(remote, worker, timeout_s, will_return=False)
        _wait_until_gone(remote, worker, incarnation, timeout_s)
    console.print(f"{worker} is out of service; `diptych restart {worker}` starts it again")


def restart_command(
    workers: Annotated[list[str] | None, typer.Argument(help="Which ones, in this order [default: all].")] = None,
    timeout_s: Timeout = 30.0,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    ca_cert: CaCert = None,
) -> None:
    """Restart workers one after the other while requests are served: drain it, start a new one, wait until that is up.

    What is cached stays. A worker that is down is just started.
    """
    console, remote = Console(stderr=True), remote_of(url, api_key, ca_cert)
    known = list(fetch_status(remote)["workers"])
    for worker in workers or known:
        with console.status(f"restarting {worker}"):
            begin_s = time.monotonic()
            _restart(remote, worker, timeout_s)
        console.print(f"{worker} is up again after {time.monotonic() - begin_s:.1f} s")


def _restart(remote: Remote, worker: str, timeout_s: float) -> None:
    info = fetch_status(remote)["workers"].get(worker)
    if info is not None and info["status"]["state"] == "dead":
        incarnation = info["address"]["incarnation"]
        order_worker(remote, worker, "start", {})
    else:
        incarnation = _begin_drain(remote, worker, timeout_s, will_return=True)
        _wait_until_gone(remote, worker, incarnation, timeout_s)
    give_up_s = time.monotonic() + UP_TIMEOUT_S
    while True:
        info = fetch_status(remote)["workers"][worker]
        if info["address"]["incarnation"] > incarnation and info["status"]["state"] == "ready":
            return
        if time.monotonic() > give_up_s:
            raise LaunchError(f"{worker} was not up again within {UP_TIMEOUT_S:.0f} s; the server's log says why")
        time.sleep(POLL_S)


def _begin_drain(remote: Remote, worker: str, timeout_s: float, *, will_return: bool) -> int:
    """Return which life of the worker will end."""
    answer = order_worker(remote, worker, "drain", {"timeout_s": timeout_s, "will_return": will_return})
    incarnation: int = answer["worker"]["incarnation"]
    return incarnation


def _wait_until_gone(remote: Remote, worker: str, incarnation: int, timeout_s: float) -> None:
    give_up_s = time.monotonic() + timeout_s + GONE_GRACE_S
    while _is_life(fetch_status(remote)["workers"][worker], incarnation):
        if time.monotonic() > give_up_s:
            raise LaunchError(f"{worker} has not ended {GONE_GRACE_S:.0f} s after its time; the server's log says why")
        time.sleep(POLL_S)


def _is_life(info: dict[str, Any], incarnation: int) -> bool:
    return bool(info["address"]["incarnation"] == incarnation and info["status"]["state"] != "dead")
