"""`diptych profile` of a real server under load."""

import json
import threading
from pathlib import Path

import pytest
from tests.live_process import StartCommand
from tests.live_server import LiveServer, StartServer

from diptych.cli.profile import ACTIVITIES, shares_of, speedscope_of
from diptych.worker.activity import Activity


def test_the_columns_are_the_workers_activities() -> None:
    assert set(ACTIVITIES) == {activity.value for activity in Activity}


def test_a_table_and_a_file(modeled_server: StartServer, start_command: StartCommand, tmp_path: Path) -> None:
    server = modeled_server(modeled_time_scale=1.0)
    stop = threading.Event()
    load = threading.Thread(target=_keep_busy, args=(server, stop))
    load.start()
    file, folded = tmp_path / "profile.json", tmp_path / "profile.txt"
    try:
        command = start_command("profile", "1.5", "--url", server.url, "--output", str(file))
        assert command.wait_for_exit() == 0, command.stderr
        again = start_command("profile", "0.3", "--url", server.url, "--worker", "decode-0", "-o", str(folded))
        assert again.wait_for_exit() == 0, again.stderr
    finally:
        stop.set()
        load.join()

    rows = {line.split()[0]: line.split()[1:] for line in command.stdout.splitlines()[1:]}
    assert rows.keys() == {*ACTIVITIES, "looks"}
    scope = json.loads(file.read_text())
    assert [profile["name"] for profile in scope["profiles"]] == ["decode-0", "prefill-0"]
    decode = scope["profiles"][0]
    assert decode["endValue"] == pytest.approx(sum(decode["weights"]))
    assert 0.5 < decode["endValue"] < 2.0
    names = [frame["name"] for frame in scope["shared"]["frames"]]
    assert "diptych.worker.memory:WorkerMemory.run_step" in names
    assert float(rows["engine"][0].rstrip("%")) > 30, "it writes without pause"
    lines = folded.read_text().splitlines()
    assert all(line.startswith("decode-0;") and line.rpartition(" ")[2].isdecimal() for line in lines)


def _keep_busy(server: LiveServer, stop: threading.Event) -> None:
    while not stop.is_set():
        server.complete_all([[7 + number] * 20 for number in range(4)], max_tokens=100)


def test_a_worker_that_there_is_not(shared_modeled_server: LiveServer, start_command: StartCommand) -> None:
    command = start_command("profile", "0.2", "--url", shared_modeled_server.url, "--worker", "decode-7")
    assert command.wait_for_exit() == 1
    assert command.stderr.splitlines()[-1] == "error: there is no worker decode-7; `diptych status` lists them"


def test_shares_and_weights() -> None:
    stacks = {"engine;a;b": 3, "idle;a": 1}
    shares = shares_of(stacks)
    assert (shares["engine"], shares["idle"], shares["sampling"]) == (0.75, 0.25, 0.0)
    scope = speedscope_of({"decode-0": (stacks, 0.01)})
    assert scope["shared"]["frames"] == [{"name": name} for name in ("engine", "a", "b", "idle")]
    assert scope["profiles"][0]["samples"] == [[0, 1, 2], [3, 1]]
    assert shares_of({})["engine"] == 0.0
