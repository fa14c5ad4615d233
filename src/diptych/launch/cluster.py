"""Machines that Ray starts (`diptych serve --cluster`): where it has room for them, and anew where they fail.

Each agent is an actor (launch/ray_actor.py) in a bundle of one placement group, so that all of them are placed or none.
Ray is on no token's path: agents join the router as machines do that somebody started by hand, and the router notices
by itself who is gone. Every call of Ray's has a deadline, since some never return (a node of a placement group that is
removed leaves calls pending).

Ray is imported where it is used: it is an extra, and takes a second.
"""

import importlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

from diptych.core.errors import LaunchError
from diptych.core.machine_groups import MachineGroup
from diptych.launch.ray_actor import MachineActor
from diptych.wire.border import HostPort

NAMESPACE = "diptych"
CALL_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
Strategy = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]
Answer = TypeVar("Answer")


class RayMachines:
    """All agents of one server. They end with it, however it ends: their owner is this process."""

    def __init__(self, address: str, router: HostPort, groups: Sequence[MachineGroup], strategy: Strategy) -> None:
        """`address`: of the Ray cluster, or `auto`. Raises: LaunchError if Ray is not installed."""
        try:
            self._ray: Any = importlib.import_module("ray")
            self._groups_module: Any = importlib.import_module("ray.util.placement_group")
            self._strategies: Any = importlib.import_module("ray.util.scheduling_strategies")
        except ImportError:
            raise LaunchError("--cluster needs Ray: pip install 'diptych[ray]'") from None
        self._address = address
        self._router = router
        self._groups = groups
        self._strategy = strategy
        self._placement: Any = None
        self._actors: dict[str, Any] = {}
        self._is_connected = False

    def start(self, timeout_s: float) -> None:
        """Place all agents and return when all have joined.

        Raises: LaunchError; what was started has been stopped.
        """
        deadline_s = time.monotonic() + timeout_s
        try:
            self._connect(min(timeout_s, CALL_TIMEOUT_S))
            self._place(deadline_s)
            self._wait_until_joined(deadline_s)
        except BaseException:
            self.kill()
            raise

    def _connect(self, timeout_s: float) -> None:
        def connect() -> None:
            self._ray.init(address=self._address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)

        self._within(timeout_s, f"let this process in at {self._address}", connect)
        self._is_connected = True

    def _place(self, deadline_s: float) -> None:
        agents = [(name, group) for group in self._groups for name in group.agents]
        bundles = [dict(group.resources) for _, group in agents]
        self._placement = self._within(
            CALL_TIMEOUT_S,
            "take the order for a placement group",
            partial(self._groups_module.placement_group, bundles, strategy=self._strategy),
        )
        left_s = max(deadline_s - time.monotonic(), 0.1)
        has_room = self._within(left_s + 1.0, "answer", partial(self._placement.wait, left_s))
        if not has_room:
            raise LaunchError(
                f"Ray has no room for {len(bundles)} agents ({self._strategy}): each needs what [[machines]] says, "
                f"{bundles}; `ray status` shows what there is"
            )
        for index, (name, group) in enumerate(agents):
            self._actors[name] = self._within(
                CALL_TIMEOUT_S, f"take the order for {name}", partial(self._order, index, name, group)
            )

    def _order(self, bundle: int, name: str, group: MachineGroup) -> Any:
        resources = dict(group.resources)
        scheduling = self._strategies.PlacementGroupSchedulingStrategy(
            placement_group=self._placement, placement_group_bundle_index=bundle
        )
        actor = self._ray.remote(MachineActor).options(
            num_cpus=resources.pop("CPU", 0),
            num_gpus=resources.pop("GPU", 0),
            resources=resources,
            max_restarts=-1,
            scheduling_strategy=scheduling,
        )
        return actor.remote(name, tuple(self._router), str(group.keys), group.settings, CALL_TIMEOUT_S)

    def _wait_until_joined(self, deadline_s: float) -> None:
        for name, actor in self._actors.items():
            left_s = max(deadline_s - time.monotonic(), 0.1)
            try:
                self._within(left_s + 1.0, f"start {name}", partial(self._ray.get, actor.name.remote(), timeout=left_s))
            except self._ray.exceptions.GetTimeoutError:
                raise LaunchError(f"{name} has not joined within the time of --start-timeout-s") from None
            except self._ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines()[-1]
                raise LaunchError(f"{name} could not join: {reason}") from None

    def stop(self, drain_timeout_s: float) -> None:
        """Have all agents leave in order, within that time; then as `kill`."""
        leaving = [actor.leave.remote() for actor in self._actors.values()]
        if leaving:
            timeout_s = drain_timeout_s + STOP_TIMEOUT_S
            self._try_within(
                timeout_s + 1.0, lambda: self._ray.wait(leaving, num_returns=len(leaving), timeout=timeout_s)
            )
        self.kill()

    def kill(self) -> None:
        """End all agents at once and leave Ray; once more does nothing."""
        for actor in self._actors.values():
            self._try_within(CALL_TIMEOUT_S, partial(self._ray.kill, actor, no_restart=True))
        self._actors.clear()
        if self._placement is not None:
            placement, self._placement = self._placement, None
            self._try_within(CALL_TIMEOUT_S, partial(self._groups_module.remove_placement_group, placement))
        if self._is_connected:
            self._is_connected = False
            self._try_within(CALL_TIMEOUT_S, self._ray.shutdown)

    def _try_within(self, timeout_s: float, call: Callable[[], Any]) -> None:
        """Call, where it does not matter if that fails: what is not ended here ends with this process."""
        try:
            self._within(timeout_s, "answer", call)
        except (LaunchError, self._ray.exceptions.RayError, ValueError):
            return

    def _within(self, timeout_s: float, what: str, call: Callable[[], Answer]) -> Answer:
        """Call Ray on a thread that may be left behind.

        Raises: LaunchError if it takes longer, or Ray cannot be reached; else whatever `call` raises.
        """
        outcomes: queue.SimpleQueue[tuple[Answer | None, BaseException | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                outcomes.put((call(), None))
            except BaseException as error:
                outcomes.put((None, error))

        threading.Thread(target=run, name="ray", daemon=True).start()
        try:
            answer, error = outcomes.get(timeout=timeout_s)
        except queue.Empty:
            raise LaunchError(f"Ray did not {what} within {timeout_s:.0f} s") from None
        if isinstance(error, (ConnectionError, RuntimeError)) and not isinstance(error, self._ray.exceptions.RayError):
            raise LaunchError(f"Ray did not {what}: {str(error).strip().splitlines()[0]}") from None
        if error is not None:
            raise error
        return answer  # type: ignore[return-value]
