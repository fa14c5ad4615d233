"""Ray starts machines where it has room, and anew where they fail; requests never go through it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster.conftest import MODELED, NODE_TIMEOUT_S, wait_until_serving
from tests.live_process import Command, StartCommand
from tests.live_server import LiveServer, eventually
from tests.modeled_answers import expected_text, make_prompt
from tests.ports import free_port

from diptych.frontend.text.tokenizer import Tokenizer
from diptych.launch.run_directory import RunDirectory
from diptych.wire.cluster_keys import create_keys

START_TIMEOUT_S = 60.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    """A Ray cluster with room for one agent that reads and writes, and one that does both in the same steps."""
    program = [sys.executable, "-m", "tests.cluster.ray_cluster", "apart", "together"]
    variables = {**os.environ, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables, cwd=Path(__file__).parents[2]
    )
    assert process.stdin is not None
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address, "Ray did not start"
    yield address
    process.stdin.close()
    process.wait(START_TIMEOUT_S)
    process.stdout.close()
    RunDirectory().close()  # sweeps what agents that were killed have left of theirs


@pytest.fixture
def config(tmp_path: Path) -> Path:
    create_keys(tmp_path / "keys", ["node"])
    path = tmp_path / "cluster.toml"
    path.write_text(
        f"""
cluster_listen = "127.0.0.1:{free_port()}"
cluster_keys = "{tmp_path}/keys"
node_timeout_s = {NODE_TIMEOUT_S}
prefill = 0
decode = 0
port = 0

[[machines]]
name = "apart"
keys = "{tmp_path}/keys/node"
kv_bytes = "2MB"
prefill = 1
decode = 1
resources = {{ CPU = 1, apart = 1 }}

[[machines]]
name = "together"
keys = "{tmp_path}/keys/node"
kv_bytes = "2MB"
mixed = 1
resources = {{ CPU = 1, together = 1 }}
"""
    )
    return path


def serve(start: StartCommand, address: str, config: Path, *more: str) -> Command:
    return start(*("serve", "--cluster", address, "--config", str(config)), *MODELED, *more)


def test_machines_are_placed_serve_and_are_replaced(
    ray_address: str, config: Path, start_command: StartCommand, tokenizer: Tokenizer
) -> None:
    command = serve(start_command, ray_address, config, "--modeled-time-scale", "0.3", "--routing", "round-robin")
    server = LiveServer(command.wait_for_url())
    wait_until_serving(server, "apart-0", "together-0")
    workers = server.status()["workers"]
    assert set(workers) == {"apart-0.prefill-0", "apart-0.decode-0", "together-0.mixed-0"}
    prompts = [make_prompt(50, seed) for seed in range(6)]
    assert [one.text for one in server.complete_all(prompts)] == [expected_text(tokenizer, p, 16) for p in prompts]

    agent = parent_of(workers["together-0.mixed-0"]["status"]["pid"])
    with server.stream(prompts[0], max_tokens=160) as one, server.stream(prompts[1], max_tokens=160) as other:
        one.read(2)
        other.read(2)
        os.kill(agent, signal.SIGKILL)
        texts = [stream.read().completion().text for stream in (one, other)]
    assert texts == [expected_text(tokenizer, prompt, 160) for prompt in prompts[:2]]
    wait_until_serving(server, "apart-0", "together-0")
    pid = server.status()["workers"]["together-0.mixed-0"]["status"]["pid"]
    assert parent_of(pid) != agent, "Ray has started another actor"
    server.wait_until_idle()
    server.close()
    command.signal(signal.SIGTERM)
    assert command.wait_for_exit() == 0, command.stderr
    assert "Traceback" not in command.stderr
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "the end of all workers")


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_what_ray_has_no_room_for_is_said_in_time(ray_address: str, config: Path, start_command: StartCommand) -> None:
    config.write_text(config.read_text().replace("together = 1", "absent = 1"))
    begin_s = time.monotonic()
    command = serve(start_command, ray_address, config, "--start-timeout-s", "8")
    assert command.wait_for_exit() == 1
    assert time.monotonic() - begin_s < START_TIMEOUT_S
    assert "Ray has no room for 2 agents (SPREAD)" in command.stderr
    assert "Traceback" not in command.stderr


def test_no_ray_at_that_address_is_said_in_time(config: Path, start_command: StartCommand) -> None:
    command = serve(start_command, "127.0.0.1:1", config, "--start-timeout-s", "6")
    assert command.wait_for_exit() == 1
    assert command.stderr.splitlines()[-1].startswith("error: Ray did not let this process in at 127.0.0.1:1")


def test_nothing_to_start(config: Path, start_command: StartCommand) -> None:
    config.write_text(config.read_text().partition("[[machines]]")[0])
    command = serve(start_command, "auto", config)
    assert command.wait_for_exit() == 1
    assert "nothing is to be started; say what in [[machines]]" in command.stderr
