"""What a model's own files say about it: a GGUF header, or the JSON files that come with a folder of OpenVINO IR."""

import json
from pathlib import Path
from typing import cast

import msgspec

from diptych.core.errors import ModelError
from diptych.models.gguf import GgufArray, GgufHeader

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
_GGUF_EOS_KEYS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")

Json = dict[str, object]


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """None where the files do not say."""

    architecture: str | None = None
    num_layers: int | None = None
    context_length: int | None = None
    vocab_size: int | None = None
    source_precision: str | None = None
    """Of the file it was converted from, such as `Q4_1`."""
    eos_token_ids: tuple[int, ...] = ()
    license: str | None = None


def facts_of_gguf(header: GgufHeader) -> ModelFacts:
    """Return what a GGUF file's metadata says."""
    family = header.architecture
    vocabulary = header.metadata.get("tokenizer.ggml.tokens")
    num_tokens = vocabulary.length if isinstance(vocabulary, GgufArray) else None
    eos_token_ids = {token for key in _GGUF_EOS_KEYS if (token := header.number(key)) is not None}
    return ModelFacts(
        architecture=family,
        num_layers=header.number(f"{family}.block_count"),
        context_length=header.number(f"{family}.context_length"),
        vocab_size=header.number(f"{family}.vocab_size") or num_tokens,
        source_precision=header.weights_precision,
        eos_token_ids=tuple(sorted(eos_token_ids)),
        license=header.text("general.license"),
    )


def facts_of_folder(folder: Path) -> ModelFacts:
    """Return what `config.json` and `generation_config.json` in `folder` say; neither has to be there.

    Raises: ModelError if one of them is there and is no JSON object.
    """
    config = _read_json(folder / "config.json")
    # Models that also read images keep what is about the language model one level down.
    text_config = config.get("text_config")
    if isinstance(text_config, dict):
        config = config | cast(Json, text_config)
    generation = _read_json(folder / "generation_config.json")
    eos_token_ids = _token_ids(config.get("eos_token_id")) | _token_ids(generation.get("eos_token_id"))
    model_type = config.get("model_type")
    return ModelFacts(
        architecture=model_type if isinstance(model_type, str) else None,
        num_layers=_first_int(config, ("num_hidden_layers", "n_layer", "num_layers")),
        context_length=_first_int(config, _CONTEXT_KEYS),
        vocab_size=_first_int(config, ("vocab_size",)),
        eos_token_ids=tuple(sorted(eos_token_ids)),
    )


def merge_facts(preferred: ModelFacts, other: ModelFacts) -> ModelFacts:
    """Return `preferred` with its gaps filled from `other`, and the end-of-sequence tokens of both."""
    filled = {
        name: value if (value := getattr(preferred, name)) is not None else getattr(other, name)
        for name in ModelFacts.__struct_fields__
    }
    filled["eos_token_ids"] = tuple(sorted({*preferred.eos_token_ids, *other.eos_token_ids}))
    return ModelFacts(**filled)


def _read_json(path: Path) -> Json:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ModelError(f"{path} is truncated or damaged ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object; fetch it again")
    return content


def _first_int(content: Json, keys: tuple[str, ...]) -> int | None:
    for key in keys:
        value = content.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _token_ids(value: object) -> set[int]:
    values = value if isinstance(value, list) else [value]
    return {token for token in values if isinstance(token, int) and not isinstance(token, bool)}
