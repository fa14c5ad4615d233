"""`diptych bench` as its users run it: real servers of ours with the modeled engine, real HTTP, wrong flags, Ctrl-C."""

import json
import signal
from pathlib import Path

import pytest
from tests.live_process import StartCommand
from tests.live_server import StartServer, eventually

from diptych.bench.record import load

SERVER = "diptych serve --engine modeled --modeled-time-scale 0.02 --kv-bytes 10MB"
BRIEF = ["--duration-s", "3", "--workload", "code"]


def test_one_load_against_a_running_server(
    start_command: StartCommand, modeled_server: StartServer, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    command = start_command(
        "bench", "run", modeled_server(modeled_time_scale=0.02).url, "--rate", "20", *BRIEF, "--output", str(output)
    )
    assert command.wait_for_exit() == 0, command.stderr
    (run,) = load(output).runs
    assert run.summary.num_failed == 0
    assert run.summary.num_offered > 30
    assert run.summary.num_output_tokens > 500
    assert "100%" in command.stdout
    assert f"report: {output / 'report.html'}" in command.stdout
    assert {path.name for path in output.iterdir()} == {
        "result.json",
        "samples.jsonl.gz",
        "report.html",
        "attainment.png",
        "latency.png",
    }


@pytest.mark.slow
def test_two_set_ups_are_compared(start_command: StartCommand, tmp_path: Path) -> None:
    slow = SERVER.replace("0.02", "0.2")
    flags = [
        "--seeds",
        "2",
        "--precision",
        "1.0",
        "--start-rate",
        "30",
        "--duration-s",
        "2",
        "--slo",
        "200ms,50ms",
        "--patience-s",
        "5",
    ]
    output = tmp_path / "out"
    command = start_command(
        "bench", "compare", f"fast={SERVER}", f"slow={slow}", "--workload", "code", *flags, "-o", str(output)
    )
    assert command.wait_for_exit(200) == 0, command.stderr
    result = load(output)
    assert result.is_complete
    assert [(sweep.target, sweep.seed) for sweep in result.sweeps] == [
        ("fast", 0),
        ("slow", 0),
        ("slow", 1),
        ("fast", 1),
    ]
    assert result.ratios[0].estimate.median > 1.5
    assert "fast carries" in command.stdout
    command.wait_until_gone()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_end_by_signal_keeps_what_was_measured(start_command: StartCommand, tmp_path: Path, number: int) -> None:
    output = tmp_path / "out"
    flags = ["--duration-s", "2", "--start-rate", "5", "--precision", "0.01", "--no-report", "-o", str(output)]
    command = start_command("bench", "sweep", SERVER, *flags)
    eventually(lambda: command.stderr.count("requests/s:") >= 2, "two runs")
    command.signal(number)
    assert command.wait_for_exit() == 130
    result = load(output)
    assert not result.is_complete
    assert len(result.runs) >= 2
    assert "interrupted" in command.stdout
    command.wait_until_gone()


def test_a_trace_is_replayed(start_command: StartCommand, modeled_server: StartServer, tmp_path: Path) -> None:
    row = {"input_length": 600, "output_length": 20}
    rows = [row | {"timestamp": 50 * index, "hash_ids": [7, 100 + index]} for index in range(60)]
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--trace", str(trace), "--scale", "0.5", "--rate", "20", "--duration-s", "2", "--no-report"]
    command = start_command(
        "bench", "run", modeled_server(modeled_time_scale=0.02).url, *flags, "-o", str(tmp_path / "out")
    )
    assert command.wait_for_exit() == 0, command.stderr
    summary = load(tmp_path / "out").runs[0].summary
    assert summary.num_prompt_tokens == 300 * (summary.num_offered - summary.num_failed)
    # 256 of 300 tokens are shared, of which whole blocks are found.
    assert summary.num_cached_tokens >= 0.6 * summary.num_prompt_tokens


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("run", "http://127.0.0.1:9"), "is a server running there"),
        (("run", "nonsense"), "say with {port} where the port goes"),
        (("run", "--workload", "poetry"), "there is no workload 'poetry'; choose one of chat, code"),
        (("sweep", "--slo", "fast"), "an SLO is written like"),
        (("sweep", "--slo", "1s,50ms", "--slo", "1s,50ms"), "an SLO is given twice"),
        (("run", "--trace", "/absent"), "cannot read the trace /absent"),
        (("run", "--route", "embeddings"), "--route is completions or chat"),
        (("compare", "http://h:1", "http://h:1"), "two servers have the same name"),
        (("run", "x=diptych serve --port-number 1"), "x ended while starting (status 2)"),
        (("report", "/absent"), "/absent holds no result"),
    ],
)
def test_an_error_is_one_line(
    start_command: StartCommand, tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    output = [] if arguments[0] == "report" else ["--output", str(tmp_path / "out"), "--no-report"]
    command = start_command("bench", *arguments, *output)
    assert command.wait_for_exit() == 1
    assert complaint in command.stderr
    assert command.stderr.splitlines()[-1].startswith("error: ") or command.stderr.count("error: ") == 1
    assert "Traceback" not in command.stderr
