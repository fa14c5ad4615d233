import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.small_disk import small_disk

from diptych.core.errors import ModelError
from diptych.models.conversion import convert_gguf
from diptych.models.folder import check_folder
from diptych.models.progress import SilentProgress
from diptych.models.resolution import resolve
from diptych.models.workshop import Workshop

GgufBuilder = Callable[[Mapping[str, object], Mapping[str, Any]], bytes]

LIMITED = """
import resource, sys
from diptych.core.errors import ModelError
from diptych.models.resolution import resolve
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    resolve(sys.argv[1])
except ModelError as error:
    print(error)
"""


@contextlib.contextmanager
def _workshop(folder: Path) -> Iterator[Workshop]:
    folder.mkdir()
    with (folder.parent / "lock").open("w") as lock:
        yield Workshop("tiny", folder, lock.fileno(), SilentProgress())


def _leftovers(cache: Path) -> list[str]:
    return [path.name for path in (cache / "models").iterdir() if not path.name.endswith(".lock")]


def test_a_converted_file_is_a_whole_folder_and_stays_where_it_was(tiny_gguf: Path, tmp_path: Path) -> None:
    with _workshop(tmp_path / "work") as workshop:
        header = convert_gguf(tiny_gguf, workshop)
    assert header.path == tiny_gguf
    assert tiny_gguf.exists()
    assert check_folder(tmp_path / "work").facts.vocab_size == 260
    assert not list((tmp_path / "work").glob("*.gguf"))


def test_a_file_in_the_workshop_is_used_up(tiny_gguf: Path, tmp_path: Path) -> None:
    with _workshop(tmp_path / "work") as workshop:
        own = tiny_gguf.rename(workshop.folder / "model.gguf")
        convert_gguf(own, workshop)
    assert not own.exists()


def test_a_truncated_file_never_reaches_the_converter(tiny_gguf: Path, cache: Path) -> None:
    os.truncate(tiny_gguf, tiny_gguf.stat().st_size - 1)
    with pytest.raises(ModelError, match=r"tiny\.gguf is truncated: 113 kB"):
        resolve(str(tiny_gguf))
    assert _leftovers(cache) == []


def test_an_unknown_family_is_named(
    build_gguf: GgufBuilder,
    tiny_metadata: Mapping[str, object],
    tiny_tensors: Mapping[str, Any],
    tmp_path: Path,
    cache: Path,
) -> None:
    renamed = {key.replace("llama.", "gemma2."): value for key, value in tiny_metadata.items()}
    path = tmp_path / "gemma.gguf"
    path.write_bytes(build_gguf({**renamed, "general.architecture": "gemma2"}, tiny_tensors))
    with pytest.raises(ModelError, match="'gemma2' family, and OpenVINO GenAI reads GGUF files of llama, qwen2, qwen3"):
        resolve(str(path))
    assert _leftovers(cache) == []


def test_a_converter_that_fails_says_why(
    build_gguf: GgufBuilder,
    tiny_metadata: Mapping[str, object],
    tiny_tensors: Mapping[str, Any],
    tmp_path: Path,
    cache: Path,
) -> None:
    path = tmp_path / "headless.gguf"
    without_heads = {key: value for key, value in tiny_metadata.items() if key != "llama.attention.head_count"}
    path.write_bytes(build_gguf(without_heads, tiny_tensors))
    with pytest.raises(ModelError, match=r"OpenVINO GenAI cannot convert .*headless\.gguf") as caught:
        resolve(str(path))
    assert "\n" not in str(caught.value)


def test_one_part_of_a_split_model_is_refused(
    build_gguf: GgufBuilder, tiny_metadata: Mapping[str, object], tmp_path: Path, cache: Path
) -> None:
    path = tmp_path / "part.gguf"
    path.write_bytes(build_gguf({**tiny_metadata, "split.count": 3}, {}))
    with pytest.raises(ModelError, match="one of 3 parts"):
        resolve(str(path))


def test_a_converter_that_dies_is_one_line(tiny_gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dying = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"]
    monkeypatch.setattr("diptych.models.conversion.python_program", lambda *_arguments: dying)
    with pytest.raises(ModelError, match=r"the conversion of .*tiny\.gguf died \(SIGSEGV\)"):
        resolve(str(tiny_gguf))
    killed = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
    monkeypatch.setattr("diptych.models.conversion.python_program", lambda *_arguments: killed)
    with pytest.raises(ModelError, match="was killed: it needs memory"):
        resolve(str(tiny_gguf))
    assert _leftovers(cache) == []


@pytest.mark.parametrize("limit_bytes", [50_000, 120_000])  # within the .bin; within the .xml
def test_a_write_that_the_system_refuses_is_one_line(tiny_gguf: Path, cache: Path, limit_bytes: int) -> None:
    command = [sys.executable, "-c", LIMITED, str(tiny_gguf), str(limit_bytes)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.startswith(f"no space left in {cache}/models/")
    assert "MB needed" in ended.stdout
    assert ended.stdout.count("\n") == 1
    assert ended.stderr == ""
    assert _leftovers(cache) == []
    assert resolve(str(tiny_gguf)).context_length == 256  # and nothing is in the way of the next try


def test_a_disk_without_room_is_refused_before_anything_is_written(tiny_gguf: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=1m") as disk:
        with pytest.raises(ModelError, match=r"no space left in .*: 32 MB needed, 1\.0 MB free"):
            resolve(str(tiny_gguf), cache=disk)
        assert _leftovers(disk) == []


def test_a_disk_that_fills_up_on_the_way_leaves_nothing(tiny_gguf: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=64m,nr_inodes=7") as disk:  # room for bytes, not for all files
        with pytest.raises(ModelError, match=rf"no space left in {disk}.*or the number of files \(df -i\)"):
            resolve(str(tiny_gguf), cache=disk)
        assert _leftovers(disk) == []
