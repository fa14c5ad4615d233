"""Several processes, interrupted ones, damaged caches: whatever happened before, a model is made once and whole."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from diptych.models.cache import ModelCache
from diptych.models.catalog import CATALOG, DEFAULT_MODEL
from diptych.models.description import describe
from diptych.models.folder import load_folder
from diptych.models.progress import SilentProgress
from diptych.models.recipes import GgufRecipe
from diptych.models.resolution import resolve

RESOLVE = """
import signal
# Ctrl-C is ignored in what a script runs in the background, such as these tests; a person's shell does not.
signal.signal(signal.SIGINT, signal.default_int_handler)
import sys
from pathlib import Path
from diptych.models import resolve, stderr_progress
wheel = Path(sys.argv[2]) if sys.argv[2:] else None
print(resolve(sys.argv[1], progress=stderr_progress(), local_wheel=wheel).key)
"""
IMPORTS = "import sys, diptych.models; print(*sorted({name.partition('.')[0] for name in sys.modules}))"


class Starter(Protocol):
    """Starts a process that resolves a model."""

    def __call__(self, model: Path | str, wheel: Path | None = None) -> "subprocess.Popen[str]": ...


class Notes(SilentProgress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture
def start_resolving(cache: Path) -> Iterator[Starter]:
    """Start processes that resolve a model into the fresh cache; none outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def start(model: Path | str, wheel: Path | None = None) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", RESOLVE, str(model), *([str(wheel)] if wheel else [])]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=10)


def _read_line(process: "subprocess.Popen[str]") -> str:
    """Wait for the next line on stderr; a watchdog ends the process, and so the wait, after 30 s."""
    assert process.stderr is not None
    watchdog = threading.Timer(30, process.kill)
    watchdog.start()
    try:
        return process.stderr.readline()
    finally:
        watchdog.cancel()
        watchdog.join()


def _folders(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "models").iterdir() if path.is_dir())


def _resolve_together(cache: Path, key: str, start: Callable[[], "subprocess.Popen[str]"]) -> list[str]:
    """Let two processes come to the same lock before either gets it; return what each wrote to stderr."""
    with ModelCache(cache).lock(key, SilentProgress(), wait_s=1):
        processes = [start() for _ in range(2)]
        assert all("waiting for process" in _read_line(process) for process in processes)
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0][0] == outputs[1][0] != ""
    assert _folders(cache) == [key]
    return [stderr for _, stderr in outputs]


def test_two_processes_that_start_together_convert_once(tiny_gguf: Path, cache: Path, start_resolving: Starter) -> None:
    outputs = _resolve_together(cache, GgufRecipe(tiny_gguf).key, lambda: start_resolving(tiny_gguf))
    assert sum(stderr.count("converting tiny") for stderr in outputs) == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_default_model_is_made_once_from_its_wheel(
    default_wheel: Path, cache: Path, start_resolving: Starter
) -> None:
    model = CATALOG[DEFAULT_MODEL]
    outputs = _resolve_together(cache, model.key, lambda: start_resolving(DEFAULT_MODEL, default_wheel))
    assert sum(stderr.count(f"unpacking {DEFAULT_MODEL}") for stderr in outputs) == 1
    assert sum(stderr.count(f"converting {DEFAULT_MODEL}") for stderr in outputs) == 1
    folder = resolve(DEFAULT_MODEL)  # from the cache now: no network
    assert (folder.name, folder.context_length, folder.license) == (DEFAULT_MODEL, 8192, "Apache-2.0")
    assert folder.eos_token_ids == {2}
    description = describe(DEFAULT_MODEL)
    assert (description.num_layers, description.vocab_size, description.kv_bytes_per_token) == (30, 49152, 23040)
    shutil.rmtree(cache)  # 100 MB need not wait for pytest to tidy up


def test_a_killed_process_is_in_nobodys_way(tiny_gguf: Path, cache: Path, start_resolving: Starter) -> None:
    process = start_resolving(tiny_gguf)
    assert "converting tiny" in _read_line(process)
    os.kill(process.pid, signal.SIGKILL)  # its converter lives on for a moment, and holds the lock with it
    folder = resolve(str(tiny_gguf))
    assert folder == load_folder(folder.path, folder.name, ModelCache(cache).entries()[0].manifest.facts)
    assert _folders(cache) == [GgufRecipe(tiny_gguf).key]


def test_an_interrupt_leaves_nothing_behind(tiny_gguf: Path, cache: Path, start_resolving: Starter) -> None:
    process = start_resolving(tiny_gguf)
    assert "converting tiny" in _read_line(process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert _folders(cache) == []


def test_a_file_is_converted_once_and_again_when_it_changes(tiny_gguf: Path, cache: Path) -> None:
    first = resolve(str(tiny_gguf))
    made_ns = (first.path / "diptych.json").stat().st_mtime_ns
    assert resolve(str(tiny_gguf)) == first
    assert (first.path / "diptych.json").stat().st_mtime_ns == made_ns
    content = bytearray(tiny_gguf.read_bytes())
    content[-20_000] ^= 1  # a weight
    tiny_gguf.write_bytes(content)
    assert resolve(str(tiny_gguf)).key != first.key
    assert len(_folders(cache)) == 2


def test_the_same_weights_have_one_key_wherever_they_were_converted(tiny_gguf: Path, tmp_path: Path) -> None:
    keys = {resolve(str(tiny_gguf), cache=tmp_path / name).key for name in ("here", "there")}
    assert len(keys) == 1


def test_a_damaged_model_is_made_anew(tiny_gguf: Path, cache: Path) -> None:
    folder = resolve(str(tiny_gguf))
    os.truncate(folder.path / "openvino_model.bin", 1000)
    notes = Notes()
    assert resolve(str(tiny_gguf), progress=notes) == folder
    assert "making tiny anew, because in the cache" in notes.texts[0]
    assert "openvino_model.bin is truncated" in notes.texts[0]


def test_a_model_in_the_cache_needs_no_right_to_write(tiny_gguf: Path, cache: Path) -> None:
    folder = resolve(str(tiny_gguf))
    files_before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    assert resolve(str(tiny_gguf)) == folder
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == files_before


def test_importing_the_package_is_light() -> None:
    ended = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, timeout=60, check=True)
    heavy = {"openvino", "openvino_genai", "openvino_tokenizers", "huggingface_hub", "numpy", "torch", "rich"}
    assert heavy & set(ended.stdout.split()) == set()
