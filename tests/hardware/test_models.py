import pytest

from diptych.core.errors import ConfigError
from diptych.hardware.models import MODELS, find_model

PUBLISHED_PARAMETERS = {
    "opt-13b": 12.85e9,
    "opt-66b": 65.7e9,
    "opt-175b": 174.6e9,
    "llama-3-8b": 8.03e9,
    "llama-3-70b": 70.6e9,
    "qwen3-32b": 32.8e9,
    "deepseek-v3": 671e9,
    "smollm2-135m": 134.5e6,
}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_shapes_have_as_many_parameters_as_published(name: str) -> None:
    assert MODELS[name].parameters == pytest.approx(PUBLISHED_PARAMETERS[name], rel=0.01)


def test_a_mixture_of_experts_multiplies_with_few_of_them() -> None:
    assert MODELS["deepseek-v3"].active_parameters == pytest.approx(37e9, rel=0.02)


def test_kv_of_512_tokens_of_opt_66b_is_what_the_paper_says() -> None:
    """DistServe, section 3.3: 1.13 GB, which are powers of two there."""
    assert 512 * MODELS["opt-66b"].kv_bytes_a_token / 2**30 == pytest.approx(1.13, abs=0.01)


def test_kv_of_a_70b_with_grouped_heads_is_what_mooncake_says() -> None:
    assert MODELS["llama-3-70b"].kv_bytes_a_token == 320 * 1024


def test_the_more_tokens_the_more_experts_are_read() -> None:
    model = MODELS["deepseek-v3"]
    one, many = model.touched_bytes(1), model.touched_bytes(1000)
    assert one == pytest.approx(model.active_parameters * model.bytes_a_parameter, rel=0.01)
    assert many == pytest.approx(model.weight_bytes, rel=0.01)


def test_a_misspelt_model_is_guessed() -> None:
    with pytest.raises(ConfigError, match="did you mean opt-66b"):
        find_model("opt-66")
    with pytest.raises(ConfigError, match="known are"):
        find_model("zzz")
