"""GGUF to OpenVINO IR, once a model: runs the `convert` program and words what can go wrong with it."""

import shutil
from pathlib import Path

import msgspec

from diptych.core.errors import ModelError
from diptych.models.child import Deadlines, Ended, Program, ProgramReport, python_program, run_program
from diptych.models.disk import folder_bytes, is_full, no_space, require_free_space
from diptych.models.folder import check_folder
from diptych.models.gguf import GgufHeader, read_gguf
from diptych.models.workshop import Workshop

READABLE_FAMILIES = frozenset({"llama", "qwen2", "qwen3"})
"""What the GGUF reader of openvino-genai 2026.4 knows. Only explains failures, so that a newer one may know more."""

_GGUF_NAME = "model.gguf"
_TOKENIZER_BYTES = 32 * 10**6
_MIN_DEADLINE_S = 300.0
_MIN_BYTES_PER_S = 2_000_000.0
"""A 98 MB file takes 3 to 10 s on two busy cores; five times slower than that is a hang."""


def conversion_bytes(gguf_bytes: int) -> int:
    """Return how much room the IR of a GGUF file may take: some quantizations grow when they are repacked."""
    return gguf_bytes * 3 // 2 + _TOKENIZER_BYTES


def convert_gguf(gguf: Path, workshop: Workshop) -> GgufHeader:
    """Convert `gguf` into the workshop's folder, which afterwards holds it beside what it held before.

    `gguf` is only read.

    A file that lies in the workshop's folder itself is gone afterwards: the IR takes its place.

    Raises: ModelError if the file is damaged, of a kind that cannot be read, or there is no room for the result.
    """
    header = read_gguf(gguf)
    if header.num_split_files > 1:
        raise ModelError(
            f"{gguf} is one of {header.num_split_files} parts of a model, which cannot be converted; "
            "merge them with `llama-gguf-split --merge`, or get a single file"
        )
    folder = workshop.folder
    needed_bytes = conversion_bytes(header.size_bytes)
    require_free_space(folder, needed_bytes)
    # The converter writes beside the file it is given, so it is given a link in our folder.
    link = folder / _GGUF_NAME
    if gguf != link:
        link.unlink(missing_ok=True)
        link.symlink_to(gguf)
    deadlines = Deadlines(total_s=max(_MIN_DEADLINE_S, header.size_bytes / _MIN_BYTES_PER_S))
    with workshop.progress.stage(f"converting {workshop.name} for OpenVINO, once") as update:
        command = python_program("diptych.models.convert", str(link))
        ended = run_program(
            Program(command, f"the conversion of {gguf}", deadlines, held_fd=workshop.lock_fd), on_bytes=update
        )
    _check_report(ended, gguf, header, workshop, needed_bytes)
    link.unlink()
    check_folder(folder)
    return header


def _check_report(ended: Ended, gguf: Path, header: GgufHeader, workshop: Workshop, needed_bytes: int) -> None:
    try:
        report = msgspec.json.decode(ended.stdout, type=ProgramReport)
    except msgspec.MsgspecError:
        # A full disk may also end the program before it can say anything.
        if shutil.disk_usage(workshop.folder).free < needed_bytes - folder_bytes(workshop.folder):
            raise no_space(workshop.folder, needed_bytes) from None
        raise ModelError(_crash_text(ended, gguf, header)) from None
    if report.error is None:
        return
    if report.kind == "import":
        raise ModelError(f"openvino-genai cannot be loaded ({_first_line(report.error)}); install diptych anew")
    if "iostream error" in report.error or is_full(workshop.folder):  # what the C++ library says when a write fails
        raise no_space(workshop.folder, needed_bytes)
    raise ModelError(_family_text(gguf, header) or f"OpenVINO GenAI cannot convert {gguf}: {_first_line(report.error)}")


def _crash_text(ended: Ended, gguf: Path, header: GgufHeader) -> str:
    if ended.death == "SIGKILL":
        return f"the conversion of {gguf} was killed: it needs memory of about twice the file's size"
    return (
        _family_text(gguf, header)
        or f"the conversion of {gguf} died ({ended.death or ended.last_words}); report this file"
    )


def _family_text(gguf: Path, header: GgufHeader) -> str | None:
    """Return the likely reason of a failure: an architecture that the reader does not know; None if it knows it."""
    if header.architecture in READABLE_FAMILIES:
        return None
    return (
        f"{gguf} is of the {header.architecture!r} family, and OpenVINO GenAI reads GGUF files of "
        f"{', '.join(sorted(READABLE_FAMILIES))}; convert the original model with `optimum-cli export openvino`"
    )


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
