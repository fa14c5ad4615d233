"""What each peer is started with. None needs to be installed for that."""

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from diptych.core.errors import BenchError
from diptych.models.progress import SilentProgress
from peers import vllm_cpu
from peers.command import PEERS
from peers.peer import Place, Program
from peers.stock import Stock

PLACE_PORT = 8123


@pytest.fixture
def stock(tmp_path: Path) -> Stock:
    return Stock(tmp_path / "peers", SilentProgress())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    gguf = tmp_path / "tiny.gguf"
    gguf.write_bytes(b"GGUF")
    return Place(PLACE_PORT, (0, 1), ("--last", "word"), str(gguf))


def _programs(name: str, stock: Stock, place: Place) -> list[Program]:
    ports: Callable[[], int] = itertools.count(9_000).__next__
    return PEERS[name].programs(stock, place, ports)


def _flag(program: Program, name: str) -> str:
    return program.command[program.command.index(name) + 1]


@pytest.mark.parametrize("name", PEERS)
def test_the_last_program_answers_at_the_port_on_loopback(name: str, stock: Stock, place: Place) -> None:
    programs = _programs(name, stock, place)
    assert programs[-1].health_url == f"http://127.0.0.1:{PLACE_PORT}/health"
    assert _flag(programs[-1], "--port") == str(PLACE_PORT)
    assert len({program.name for program in programs}) == len(programs)
    assert all(isinstance(word, str) for program in programs for word in program.command)
    assert not stock.root.exists(), "nothing is written to find out what to run"


def test_vllm_computes_on_all_cores(stock: Stock, place: Place) -> None:
    (server,) = _programs("vllm-cpu", stock, place)
    assert server.command[0] == str(stock.path("vllm-cpu") / "bin" / "python")
    assert _flag(server, "--served-model-name") == "tiny"
    assert _flag(server, "--host") == "127.0.0.1"
    assert {"--enable-prefix-caching", "--enable-prompt-tokens-details"} <= set(server.command)
    assert "--enforce-eager" not in server.command
    assert server.command[-2:] == ("--last", "word")
    assert server.cores == (0, 1)
    assert server.env["VLLM_CPU_OMP_THREADS_BIND"] == "0,1"
    assert server.env["VLLM_CPU_KVCACHE_SPACE"] == "4"
    assert "libiomp5.so" in server.env["LD_PRELOAD"]
    assert server.env["HF_HUB_OFFLINE"] == "1"


def test_vllm_disaggregated_has_a_core_and_ports_for_each_engine(stock: Stock, place: Place) -> None:
    prefill, decode, proxy = _programs("vllm-cpu-1p1d", stock, place)
    for engine, core in ((prefill, 0), (decode, 1)):
        assert engine.cores == (core,)
        assert engine.env["VLLM_CPU_OMP_THREADS_BIND"] == str(core)
        assert engine.env["VLLM_NIXL_SIDE_CHANNEL_HOST"] == "127.0.0.1"
        transfer = json.loads(_flag(engine, "--kv-transfer-config"))
        assert transfer["kv_connector"] == "NixlConnector"
        assert transfer["kv_buffer_device"] == "cpu"
    ports = [_flag(engine, "--port") for engine in (prefill, decode)]
    ports += [engine.env["VLLM_NIXL_SIDE_CHANNEL_PORT"] for engine in (prefill, decode)]
    assert len(set(ports)) == 4
    assert _flag(proxy, "--prefill") == f"http://127.0.0.1:{_flag(prefill, '--port')}"
    assert _flag(proxy, "--decode") == f"http://127.0.0.1:{_flag(decode, '--port')}"
    assert proxy.cores == (0, 1)


def test_vllm_disaggregated_needs_two_cores(stock: Stock, place: Place) -> None:
    with pytest.raises(BenchError, match="needs two cores; say --cores"):
        _programs("vllm-cpu-1p1d", stock, Place(PLACE_PORT, (0,), (), place.model))


def test_llama_cpp_has_a_slot_for_each_request(stock: Stock, place: Place) -> None:
    (server,) = _programs("llama-cpp", stock, place)
    assert server.command[0] == str(stock.path("llama-cpp") / "bin" / "python")
    assert _flag(server, "--model") == place.model
    assert _flag(server, "--alias") == "tiny"
    assert _flag(server, "--threads") == "2"
    assert _flag(server, "--parallel") == "32"
    assert _flag(server, "--ctx-size") == str(32 * 8_192)


def test_openvino_genai_is_found_by_our_own_interpreter(
    stock: Stock, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/mine")
    (server,) = _programs("openvino-genai", stock, place)
    assert server.command[1:4] == ("-P", "-m", "peers.genai_server")
    assert _flag(server, "--threads") == "2"
    ours, theirs = server.env["PYTHONPATH"].split(os.pathsep)
    assert (Path(ours) / "peers" / "genai_server.py").exists()
    assert theirs == "/mine"


def test_the_environment_of_vllm_is_finished(tmp_path: Path) -> None:
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    (site / "nixl_cu13").mkdir(parents=True)
    api = site / "nixl_cu13" / "_api.py"
    api.write_text("a = 1\nagent_config.pthrDelay = 0\nb = 2\n")
    vllm_cpu.finish_environment(tmp_path)
    assert api.read_text() == "a = 1\nagent_config.pthrDelay = 100\nb = 2\n"
    assert "Name: vllm\n" in (site / "vllm-0.32.0+cpu.dist-info" / "METADATA").read_text()


def test_another_nixl_is_noticed(tmp_path: Path) -> None:
    package = tmp_path / "lib" / "python3.11" / "site-packages" / "nixl_cu13"
    package.mkdir(parents=True)
    (package / "_api.py").write_text("pass\n")
    with pytest.raises(BenchError, match="no longer sets pthrDelay"):
        vllm_cpu.finish_environment(tmp_path)


@pytest.mark.parametrize("name", ["vllm-cpu", "llama-cpp"])
def test_every_requirement_is_pinned_once(name: str) -> None:
    path = Path(vllm_cpu.__file__).parent / "requirements" / f"{name}.txt"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    names = [line.partition("==")[0].lower() for line in lines]
    assert all("==" in line for line in lines)
    assert names == sorted(set(names))
