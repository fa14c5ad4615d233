"""What `diptych model list` and `diptych model show` say. Reads files; fetches and makes nothing."""

from pathlib import Path

import msgspec

from diptych.core.errors import ModelError
from diptych.models.cache import CacheEntry, ModelCache, default_cache_dir
from diptych.models.catalog import CATALOG
from diptych.models.disk import folder_bytes
from diptych.models.facts import facts_of_gguf
from diptych.models.folder import check_folder
from diptych.models.gguf import GgufHeader, read_gguf
from diptych.models.recipes import recipe_for
from diptych.models.sources import CatalogSource, FolderSource, GgufSource, parse_model

KV_ELEMENT_BYTES = 2
"""Of f16 and bf16, in which the KV cache is usually kept."""


class ModelRow(msgspec.Struct, frozen=True, kw_only=True):
    """A model that can be served by `model`."""

    model: str
    """What to type."""
    size_bytes: int
    """On the disk, or of the download."""
    where: str
    """Its folder, or where it would come from."""
    context_length: int | None
    is_cached: bool


class ModelDescription(msgspec.Struct, frozen=True, kw_only=True):
    """All that the files of a model say about it; None where they do not."""

    name: str
    where: str
    source: str | None
    """What it was made from; None for a folder of the user's."""
    form: str
    """`OpenVINO IR`, or `GGUF` for a file that would be converted first."""
    size_bytes: int
    architecture: str | None
    num_layers: int | None
    context_length: int | None
    vocab_size: int | None
    weights_precision: str | None
    kv_bytes_per_token: int | None
    """With a KV cache of two bytes a number."""
    tokenizer: str | None
    has_chat_template: bool
    eos_token_ids: tuple[int, ...]
    license: str | None


def list_models(cache: Path | None = None) -> list[ModelRow]:
    """Return the models of the catalog and all others in the cache."""
    entries = {entry.key: entry for entry in ModelCache(cache or default_cache_dir()).entries()}
    rows = []
    for model in CATALOG.values():
        entry = entries.pop(model.key, None)
        rows.append(
            _row(entry)
            if entry
            else ModelRow(
                model=model.name,
                size_bytes=model.size_bytes,
                where=f"package index: {model.requirement}",
                context_length=model.context_length,
                is_cached=False,
            )
        )
    return rows + [_row(entry) for entry in entries.values()]


def describe(model: str, cache: Path | None = None) -> ModelDescription:
    """Return what is known about `model` from files on this machine.

    Raises: ModelError if it is not on this machine, or damaged.
    """
    source = parse_model(model)
    if isinstance(source, FolderSource):
        return _describe_folder(source.path, None)
    if isinstance(source, GgufSource):
        return _describe_gguf(read_gguf(source.path))
    name = source.model.name if isinstance(source, CatalogSource) else source.text
    entry = ModelCache(cache or default_cache_dir()).try_entry(recipe_for(source).key)
    if entry is None:
        raise ModelError(f"{name} is not on this machine yet; fetch it with `diptych model pull {name}`")
    return _describe_folder(entry.path, entry)


def _row(entry: CacheEntry) -> ModelRow:
    return ModelRow(
        model=entry.manifest.model,
        size_bytes=folder_bytes(entry.path),
        where=str(entry.path),
        context_length=entry.manifest.facts.context_length,
        is_cached=True,
    )


def _describe_folder(path: Path, entry: CacheEntry | None) -> ModelDescription:
    checked = check_folder(path, entry.manifest.facts if entry else None)
    facts, kv_elements = checked.facts, checked.model.kv_elements_per_token
    return ModelDescription(
        name=entry.manifest.name if entry else path.name,
        where=str(path),
        source=entry.manifest.source if entry else None,
        form="OpenVINO IR",
        size_bytes=folder_bytes(path),
        architecture=facts.architecture,
        num_layers=facts.num_layers,
        context_length=facts.context_length,
        vocab_size=facts.vocab_size,
        weights_precision=checked.model.weights_precision,
        kv_bytes_per_token=kv_elements * KV_ELEMENT_BYTES if kv_elements else None,
        tokenizer=checked.tokenizer.tokenizer,
        has_chat_template=checked.has_chat_template,
        eos_token_ids=facts.eos_token_ids,
        license=facts.license,
    )


def _describe_gguf(header: GgufHeader) -> ModelDescription:
    facts = facts_of_gguf(header)
    return ModelDescription(
        name=header.path.stem,
        where=str(header.path),
        source=None,
        form="GGUF",
        size_bytes=header.size_bytes,
        architecture=facts.architecture,
        num_layers=facts.num_layers,
        context_length=facts.context_length,
        vocab_size=facts.vocab_size,
        weights_precision=facts.source_precision,
        kv_bytes_per_token=_kv_bytes_per_token(header),
        tokenizer=header.text("tokenizer.ggml.model"),
        has_chat_template=header.text("tokenizer.chat_template") is not None,
        eos_token_ids=facts.eos_token_ids,
        license=facts.license,
    )


def _kv_bytes_per_token(header: GgufHeader) -> int | None:
    """Return the KV bytes of a token; None if the layers differ or the header does not say."""

    def number(name: str) -> int | None:
        return header.number(f"{header.architecture}.{name}")

    num_layers, num_heads, width = number("block_count"), number("attention.head_count"), number("embedding_length")
    num_kv_heads = number("attention.head_count_kv") or num_heads
    if not (num_layers and num_heads and num_kv_heads and width):
        return None
    head_dim = width // num_heads
    dims = (number("attention.key_length") or head_dim) + (number("attention.value_length") or head_dim)
    return num_layers * num_kv_heads * dims * KV_ELEMENT_BYTES
