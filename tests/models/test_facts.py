import json
from pathlib import Path

import pytest

from diptych.core.errors import ModelError
from diptych.models.facts import ModelFacts, facts_of_folder, facts_of_gguf, merge_facts
from diptych.models.gguf import read_gguf


def test_gguf_metadata_becomes_facts(tiny_gguf: Path) -> None:
    assert facts_of_gguf(read_gguf(tiny_gguf)) == ModelFacts(
        architecture="llama",
        num_layers=1,
        context_length=256,
        vocab_size=260,
        source_precision="F16",
        eos_token_ids=(2,),
        license="apache-2.0",
    )


def test_json_files_become_facts(tmp_path: Path) -> None:
    config = {"model_type": "qwen2", "num_hidden_layers": 24, "max_position_embeddings": 32768, "eos_token_id": 7}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 7]}))
    facts = facts_of_folder(tmp_path)
    assert (facts.architecture, facts.num_layers, facts.context_length) == ("qwen2", 24, 32768)
    assert facts.eos_token_ids == (7, 9)


def test_a_nested_language_model_is_found(tmp_path: Path) -> None:
    config = {"model_type": "gemma3", "text_config": {"max_position_embeddings": 4096}, "eos_token_id": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert facts_of_folder(tmp_path).context_length == 4096
    assert facts_of_folder(tmp_path).eos_token_ids == ()


def test_a_folder_without_json_says_nothing(tmp_path: Path) -> None:
    assert facts_of_folder(tmp_path) == ModelFacts()


@pytest.mark.parametrize(("text", "error"), [("{", "truncated or damaged"), ("[]", "no JSON object"), ("\xff", "")])
def test_a_damaged_json_file_is_named(tmp_path: Path, text: str, error: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match=rf"config\.json.*{error}"):
        facts_of_folder(tmp_path)


def test_merging_prefers_the_first_and_collects_ends_of_sequence() -> None:
    merged = merge_facts(
        ModelFacts(license="MIT", eos_token_ids=(3,)), ModelFacts(license="other", vocab_size=5, eos_token_ids=(1, 3))
    )
    assert merged == ModelFacts(license="MIT", vocab_size=5, eos_token_ids=(1, 3))
