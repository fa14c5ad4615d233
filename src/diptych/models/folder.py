"""A folder of OpenVINO IR that a worker can load: checked, named and keyed. What `resolve` returns."""

from dataclasses import dataclass
from pathlib import Path

from diptych.core.errors import ModelError
from diptych.models.facts import ModelFacts, facts_of_folder, merge_facts
from diptych.models.ir import IrSummary, read_ir, weights_key

MODEL_XML = "openvino_model.xml"
TOKENIZER_XML = "openvino_tokenizer.xml"
DETOKENIZER_XML = "openvino_detokenizer.xml"
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model that is ready to be loaded. The folder is only read, and stays whose it was."""

    name: str
    """What clients call it (`/v1/models`)."""
    path: Path
    """Holds the model's, tokenizer's and detokenizer's IR."""
    key: str
    """32 hex digits that name the weights; equal on two machines only for equal weights."""
    context_length: int | None
    """Tokens the model was made for; None where its files do not say: ask the user for `--max-model-len`."""
    eos_token_ids: frozenset[int]
    """Tokens that end an answer; empty where its files name none."""
    license: str | None
    """As its files say it."""


@dataclass(frozen=True, slots=True)
class CheckedFolder:
    """A folder whose files are all there and whole, and what they say."""

    path: Path
    model: IrSummary
    tokenizer: IrSummary
    facts: ModelFacts

    @property
    def has_chat_template(self) -> bool:
        """Whether chat requests can be served."""
        in_tokenizer = {"chat_template", "simplified_chat_template"} & self.tokenizer.runtime_info.keys()
        return bool(in_tokenizer) or any((self.path / name).exists() for name in _TEMPLATE_FILES)


def check_folder(path: Path, known: ModelFacts | None = None) -> CheckedFolder:
    """Check that `path` holds a whole model with its tokenizer. `known` facts win over those of the files.

    Raises: ModelError, one line that says what is wrong and what to do.
    """
    try:
        names = {entry.name for entry in path.iterdir()}
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    if MODEL_XML not in names:
        raise _no_model(path)
    for name in (TOKENIZER_XML, DETOKENIZER_XML):
        if name not in names:
            raise ModelError(
                f"{path} has no {name}; make it with `pip install 'openvino-tokenizers[transformers]'` and "
                f"`convert_tokenizer NAME_OR_FOLDER_OF_THE_ORIGINAL --with-detokenizer -o {path}`"
            )
    model, tokenizer, _ = (read_ir(path / name) for name in (MODEL_XML, TOKENIZER_XML, DETOKENIZER_XML))
    noted_eos = tokenizer.runtime_info.get("eos_token_id", "")
    facts = merge_facts(
        facts_of_folder(path), ModelFacts(vocab_size=model.vocab_size, num_layers=len(model.kv_shapes) // 2 or None)
    )
    if noted_eos.isdigit():
        facts = merge_facts(facts, ModelFacts(eos_token_ids=(int(noted_eos),)))
    return CheckedFolder(path, model, tokenizer, merge_facts(known, facts) if known else facts)


def load_folder(path: Path, name: str, known: ModelFacts | None = None) -> ModelFolder:
    """Return the model in `path` for serving as `name`.

    Raises: ModelError if anything in the folder is missing or damaged.
    """
    facts = check_folder(path, known).facts
    return ModelFolder(
        name=name,
        path=path,
        key=weights_key(path / MODEL_XML),
        context_length=facts.context_length,
        eos_token_ids=frozenset(facts.eos_token_ids),
        license=facts.license,
    )


def _no_model(path: Path) -> ModelError:
    """Say what the folder holds instead, since people point at all kinds of folders."""
    gguf_files = sorted(path.glob("*.gguf"))
    if gguf_files:
        return ModelError(f"{path} holds no OpenVINO IR but GGUF: give the file itself, such as {gguf_files[0]}")
    if any(path.glob("*.safetensors")) or any(path.glob("pytorch_model*.bin")):
        return ModelError(
            f"{path} holds PyTorch weights, not OpenVINO IR; convert them with "
            f"`pip install optimum[openvino]` and `optimum-cli export openvino --model {path} OUTPUT_FOLDER`"
        )
    if (path / "openvino_language_model.xml").exists():
        return ModelError(f"{path} holds a model that also reads images; Diptych serves text models ({MODEL_XML})")
    return ModelError(f"{path} holds no model: {MODEL_XML} is missing")
