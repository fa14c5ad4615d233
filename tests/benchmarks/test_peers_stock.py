"""What peers need is made once, whole or not at all, and from exact versions; what goes wrong is one line."""

import subprocess
import threading
import time
import zipfile
from pathlib import Path

import pytest

from diptych.core.errors import BenchError, ModelError
from diptych.models.child import Ended
from diptych.models.progress import SilentProgress
from diptych.models.workshop import Workshop
from peers import stock as stock_module
from peers.stock import RECIPE, Environment, Stock

PACKAGE = "dptpeer"


@pytest.fixture
def stock(tmp_path: Path) -> Stock:
    return Stock(tmp_path / "peers", SilentProgress())


def _write_a(workshop: Workshop) -> None:
    (workshop.folder / "a").write_text("whole")


def _fail_half_way(workshop: Workshop) -> None:
    (workshop.folder / "a").write_text("half")
    raise ModelError("no network")


def _entries(stock: Stock) -> set[str]:
    return {path.name for path in stock.root.iterdir() if path.suffix != ".lock"}


def test_a_folder_is_made_once_and_again_for_another_recipe(stock: Stock) -> None:
    made: list[str] = []

    def build(workshop: Workshop) -> None:
        made.append(workshop.name)
        _write_a(workshop)

    for recipe in ("one", "one", "two", "two"):
        stock.make("x", recipe, 0, build)
    assert made == ["x", "x"]
    assert (stock.path("x") / "a").read_text() == "whole"
    assert _entries(stock) == {"x"}


def test_what_fails_leaves_nothing_or_the_old_folder(stock: Stock) -> None:
    with pytest.raises(BenchError, match=r"^no network$"):
        stock.make("x", "one", 0, _fail_half_way)
    assert _entries(stock) == set()
    stock.make("x", "one", 0, _write_a)
    with pytest.raises(BenchError):
        stock.make("x", "two", 0, _fail_half_way)
    assert (stock.path("x") / "a").read_text() == "whole"
    assert (stock.path("x") / RECIPE).read_text() == "one"


def test_what_a_killed_process_left_is_swept(stock: Stock) -> None:
    left = stock.root / ".x.work"
    left.mkdir(parents=True)
    (left / "b").touch()
    stock.make("x", "one", 0, _write_a)
    assert {path.name for path in stock.path("x").iterdir()} == {"a", RECIPE}


def test_two_that_ask_together_get_one(stock: Stock) -> None:
    made: list[float] = []

    def build(_workshop: Workshop) -> None:
        made.append(time.monotonic())
        time.sleep(0.3)

    threads = [threading.Thread(target=stock.make, args=("x", "one", 0, build)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_no_room_is_said_before_anything_is_made(stock: Stock) -> None:
    with pytest.raises(BenchError, match="no space left"):
        stock.make("x", "one", 1 << 60, _write_a)
    assert _entries(stock) == set()


def test_an_environment_is_installed_and_used_again(
    stock: Stock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(_wheel(tmp_path)))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    finished: list[Path] = []

    def finish(folder: Path) -> None:
        finished.append(folder)

    environment = Environment("tiny", _requirements(tmp_path, "1.0"), 0, finish)
    stock.install(environment)
    stock.install(environment)
    assert len(finished) == 1
    told = subprocess.run(
        [stock.python(environment), "-c", f"import {PACKAGE}, sys; print({PACKAGE}.WORD, sys.prefix)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.split() == ["installed", str(stock.path("tiny"))]
    stock.python(environment).unlink()  # as when the Python that it was made of is gone
    stock.install(environment)
    assert len(finished) == 2


def _requirements(folder: Path, version: str) -> Path:
    path = folder / "requirements.txt"
    path.write_text(f"# one package\n{PACKAGE}=={version}\n")
    return path


def _wheel(folder: Path) -> Path:
    info = f"{PACKAGE}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{PACKAGE}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{PACKAGE}.py", "WORD = 'installed'\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return folder


NO_INDEX = "ERROR: Could not find a version that satisfies the requirement torch==2.13.0+cpu (from versions: none)"
NO_WHEEL = "ERROR: Could not find a version that satisfies the requirement torch==2.13.0+cpu (from versions: 2.13.0)"


@pytest.mark.parametrize(
    ("stderr", "wanted"),
    [
        (f"WARNING: Retrying\n{NO_INDEX}\nERROR: No matching distribution found", "check the network and pip's index"),
        (f"{NO_WHEEL}\nERROR: No matching distribution found", "no such wheel .* PIP_FIND_LINKS"),
        ("ERROR: something new", "^cannot install tiny: something new \\(pip\\)$"),
        ("", "^cannot install tiny: exit code 1 \\(pip\\)$"),
    ],
)
def test_what_pip_says_becomes_one_line(
    stock: Stock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, wanted: str
) -> None:
    ends = iter([Ended(0, "", ""), Ended(1, "", stderr)])
    monkeypatch.setattr(stock_module, "run_program", lambda *_args, **_kwargs: next(ends))
    with pytest.raises(BenchError, match=wanted) as raised:
        stock.install(Environment("tiny", _requirements(tmp_path, "2.0"), 0))
    assert "\n" not in str(raised.value)
    assert _entries(stock) == set()


@pytest.mark.parametrize("model", ["no-such-model", "/no/such/file.gguf", "/etc/hostname"])
def test_models_that_peers_cannot_serve(stock: Stock, model: str) -> None:
    with pytest.raises(BenchError, match="smollm2-135m-instruct or a GGUF file"):
        stock.model_file(model)
