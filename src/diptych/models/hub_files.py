"""What a repository on a hub holds, and which of its files make a model. Pure."""

import re
from dataclasses import dataclass

import msgspec

from diptych.core.errors import ModelError
from diptych.models.conversion import conversion_bytes
from diptych.models.folder import DETOKENIZER_XML, MODEL_XML, TOKENIZER_XML
from diptych.models.progress import format_bytes
from diptych.models.sources import HubSource

PREFERRED_QUANTIZATIONS = ("Q4_K_M", "Q8_0", "Q4_0", "Q6_K", "F16")
"""What OpenVINO GenAI reads, the best trade of size and quality first."""
_IR_FILE = re.compile(r"openvino_(model|tokenizer|detokenizer)\.(xml|bin)|[^/]+\.(json|jinja)")
_NO_MODEL_FILE = re.compile(r"(^|/)(mmproj|imatrix)|imatrix", re.IGNORECASE)
_SPLIT_FILE = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)


class HubFile(msgspec.Struct, frozen=True):
    """A file of a repository."""

    name: str
    size_bytes: int
    """0 where the hub does not say."""


class HubListing(msgspec.Struct, frozen=True, kw_only=True):
    """A repository at one commit."""

    commit: str
    files: list[HubFile]
    license: str | None


@dataclass(frozen=True, slots=True)
class HubChoice:
    """What to fetch: the files of an IR folder, or one GGUF file."""

    commit: str
    files: tuple[HubFile, ...]
    gguf: str | None
    """Name of the GGUF file; None for OpenVINO IR."""

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def needed_bytes(self) -> int:
        """Room that fetching and, for GGUF, converting takes."""
        return self.size_bytes + (conversion_bytes(self.size_bytes) if self.gguf else 0)


def choose_files(source: HubSource, listing: HubListing) -> HubChoice:
    """Return what to fetch of a repository: its IR if it has one and no GGUF file was asked for, else one GGUF file.

    Raises: ModelError that lists the choices if none or several fit.
    """
    files = listing.files
    names = {file.name for file in files}
    if MODEL_XML in names and source.selector is None:
        missing = {TOKENIZER_XML, DETOKENIZER_XML} - names
        if missing:
            raise ModelError(
                f"{source.text} has {MODEL_XML} but no {min(missing)}; ask its owner, or fetch and complete it yourself"
            )
        return HubChoice(listing.commit, tuple(file for file in files if _IR_FILE.fullmatch(file.name)), None)
    gguf_files = [
        file for file in files if file.name.lower().endswith(".gguf") and not _NO_MODEL_FILE.search(file.name)
    ]
    if not gguf_files:
        found = "no GGUF file" if source.selector else "neither OpenVINO IR nor GGUF"
        raise ModelError(
            f"{source.repository} holds {found}; convert it with `pip install optimum[openvino]` and "
            f"`optimum-cli export openvino --model {source.repository} OUTPUT_FOLDER`"
        )
    chosen = _choose_gguf(source, gguf_files)
    if _SPLIT_FILE.search(chosen.name):
        raise ModelError(
            f"{chosen.name} is one part of a model, which cannot be converted; {_choices(source, gguf_files)}"
        )
    return HubChoice(listing.commit, (chosen,), chosen.name)


def _choose_gguf(source: HubSource, gguf_files: list[HubFile]) -> HubFile:
    selector = source.selector
    if selector is not None and selector.lower().endswith(".gguf"):
        matching = [file for file in gguf_files if file.name == selector]
    elif selector is not None:
        matching = _of_quantization(gguf_files, selector)
    elif len(gguf_files) == 1:
        matching = gguf_files
    else:
        whole_files = [file for file in gguf_files if not _SPLIT_FILE.search(file.name)]
        by_preference = (_of_quantization(whole_files, quantization) for quantization in PREFERRED_QUANTIZATIONS)
        matching = next((files for files in by_preference if len(files) == 1), [])
    if len(matching) != 1:
        problem = f"no single file fits {selector!r}" if selector else "it is not clear which GGUF file is meant"
        raise ModelError(f"{source.repository}: {problem}; {_choices(source, gguf_files)}")
    return matching[0]


def _of_quantization(gguf_files: list[HubFile], quantization: str) -> list[HubFile]:
    token = re.compile(rf"(^|[-._/]){re.escape(quantization)}([-.]|$)", re.IGNORECASE)
    return [file for file in gguf_files if token.search(file.name)]


def _choices(source: HubSource, gguf_files: list[HubFile]) -> str:
    listed = ", ".join(f"{file.name} ({format_bytes(file.size_bytes)})" for file in gguf_files)
    return f"ask for one as {source.repository}:FILE, of {listed}"
