"""`diptych simulate` as its users run it: figures, files, Ctrl-C, and what is said about mistakes."""

import json
import signal
from pathlib import Path

import pytest
from tests.live_process import StartCommand
from tests.live_server import eventually

from diptych.core.errors import ConfigError
from diptych.sim.assembly import cluster_plan
from diptych.sim.config import read_config

EXAMPLE = Path(__file__).parents[2] / "examples" / "simulate.toml"
TRACE = Path(__file__).parents[2] / "traces" / "mooncake-conversation-1000.jsonl"
SMALL = """
block_tokens = 64
[slo]
ttft_s = 1.0
tpot_s = 0.05
[[pool]]
role = "mixed"
workers = 2
hardware = "h100"
model = "llama-3-8b"
"""


def test_the_example_is_simulated_with_all_that_it_leaves(start_command: StartCommand, tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("timeline.html", "trace.json", "events.jsonl")}
    load = ["--config", str(EXAMPLE), "--workload", "multi-turn", "--rate", "20", "--duration-s", "20"]
    outputs = [
        "--html",
        str(files["timeline.html"]),
        "--chrome-trace",
        str(files["trace.json"]),
        "--events",
        str(files["events.jsonl"]),
    ]
    first = start_command("simulate", *load, *outputs)
    assert first.wait_for_exit() == 0, first.stderr
    for word in ("TTFT", "TPOT", "goodput", "prefill", "decode", "caches", "GB of KV sent", "an hour"):
        assert word in first.stdout
    page = files["timeline.html"].read_text(encoding="utf-8")
    data = json.loads(page.split("const data = ", 1)[1].split(";\n", 1)[0])
    assert {worker["pool"] for worker in data["workers"]} == {"prefill", "decode"}
    assert any(sum(worker["answers"]) > 0 for worker in data["workers"])
    assert len(data["queues"]["decode"]) > 100
    spans = json.loads(files["trace.json"].read_text(encoding="utf-8").rstrip().rstrip(",") + "]")
    assert {span["ph"] for span in spans} >= {"M", "X", "b", "e"}
    events = [json.loads(line) for line in files["events.jsonl"].read_text(encoding="utf-8").splitlines()]
    num_finished = sum(event["kind"] == "finished" for event in events)
    again = start_command("simulate", *load, "--json")
    assert again.wait_for_exit() == 0
    summary = json.loads(again.stdout)
    assert summary["num_finished"] == summary["num_requests"] == num_finished > 200
    assert 0 < summary["hit_rate"] < 1
    assert summary["ttft"]["p50_s"] < summary["ttft"]["p99_s"]
    assert summary["usd_per_hour"] == 192.0


def test_a_trace_is_replayed(start_command: StartCommand, tmp_path: Path) -> None:
    short = tmp_path / "short.jsonl"
    short.write_text("".join(TRACE.read_text(encoding="utf-8").splitlines(keepends=True)[:40]), encoding="utf-8")
    command = start_command("simulate", "-c", str(EXAMPLE), "--trace", str(short), "--json")
    assert command.wait_for_exit() == 0, command.stderr
    assert json.loads(command.stdout)["num_finished"] == 40


def test_ctrl_c_keeps_what_was_simulated(start_command: StartCommand, tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    load = ["--workload", "chat", "--rate", "50", "--duration-s", "1e6"]
    command = start_command("simulate", "-c", str(EXAMPLE), *load, "--json", "--events", str(events))
    eventually(lambda: events.exists() and events.stat().st_size > 100_000, "events")
    command.process.send_signal(signal.SIGINT)
    assert command.wait_for_exit() == 130
    assert "interrupted" in command.stderr
    assert json.loads(command.stdout)["num_requests"] > 0


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (SMALL.replace("workers = 2", "wokers = 2"), r"unknown key `pool\[1\].wokers`; did you mean workers\?"),
        (SMALL + "[links]\ngbit_per_s = 1\n", "unknown key `links`; did you mean link"),
        (SMALL.replace("ttft_s = 1.0", "ttft_s = -1"), r"`slo.ttft_s`: .*greater than 0, not -1"),
        (SMALL.replace("ttft_s = 1.0\n", ""), "`slo.ttft_s` is missing"),
        (SMALL.replace('"mixed"', '"mixd"'), r"`pool\[1\].role`: .*'prefill', 'decode' or 'mixed'"),
        (SMALL.replace('"mixed"', '"prefill"'), "somebody must write answers"),
        (SMALL.replace('"mixed"', '"decode"'), "nobody reads prompts"),
        (SMALL.replace('model = "llama-3-8b"', ""), r"`pool\[1\]`: `hardware` needs `model`"),
        (SMALL.replace('"h100"', '"h1000"'), r"`pool\[1\]`: hardware 'h1000' is not known"),
        (SMALL + "stage_gbit_per_s = 25\n", r"`pool\[1\]`: `stage_gbit_per_s` is between pipeline stages"),
        (SMALL.replace("llama-3-8b", "opt-175b"), r"`pool\[1\]`: opt-175b does not fit"),
        (
            SMALL + '[[event]]\nat_s = 1\nworker = "mixed-7"\nwhat = "dies"\n',
            r"`event\[1\].worker`: there is no mixed-7",
        ),
        (
            SMALL.replace('hardware = "h100"', 'profile = "absent.json"').replace(
                'model = "llama-3-8b"', "kv_tokens = 99"
            ),
            "absent.json",
        ),
        ("[slo", "is no TOML"),
    ],
)
def test_mistakes_are_named_with_what_to_do(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=complaint):
        cluster_plan(read_config(path), tmp_path, seed=0)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ((), "say what to offer"),
        (("--workload", "chat"), "--workload needs --rate"),
        (("--workload", "chta", "--rate", "1"), "there is no 'chta'"),
        (("--trace", "/absent.jsonl"), "cannot read the trace /absent.jsonl"),
        (("--workload", "chat", "--rate", "1", "--html", "/absent/x.html"), "cannot write /absent/x.html"),
    ],
)
def test_wrong_flags_are_one_line(start_command: StartCommand, flags: tuple[str, ...], complaint: str) -> None:
    command = start_command("simulate", "--config", str(EXAMPLE), *flags, "--duration-s", "1")
    assert command.wait_for_exit() == 1
    assert complaint in command.stderr
    assert "Traceback" not in command.stderr
