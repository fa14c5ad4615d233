"""Step times and room computed from spec sheets, against what was measured and published."""

import pytest

from diptych.core.errors import ConfigError
from diptych.core.messages import Role
from diptych.hardware.distserve_fits import FITS, fitted_costs
from diptych.hardware.estimate import estimate_worker
from diptych.hardware.models import MODELS
from diptych.hardware.roofline import Efficiency, stage_costs
from diptych.hardware.specs import DEVICES, LINKS
from diptych.hardware.worker_shape import WorkerShape, kv_room_tokens

A100 = DEVICES["a100-80g"]


def shape(model: str, tp: int = 1, pp: int = 1, device: str = "a100-80g") -> WorkerShape:
    return WorkerShape(MODELS[model], DEVICES[device], tp, pp)


@pytest.mark.parametrize(
    ("model", "tp", "pp", "published"),
    [
        ("opt-13b", 1, 1, 66_144),
        ("opt-13b", 2, 1, 163_008),
        ("opt-66b", 4, 1, 78_496),
        ("opt-66b", 4, 2, 212_320),
        ("opt-175b", 3, 3, 76_192),
        ("opt-175b", 4, 3, 126_160),
    ],
)
def test_room_for_kv_is_within_a_tenth_of_what_distserve_found(model: str, tp: int, pp: int, published: int) -> None:
    """Its repository's `max_num_tokens.csv`."""
    assert kv_room_tokens(shape(model, tp, pp)) == pytest.approx(published, rel=0.1)


def test_what_does_not_fit_is_said_with_numbers_and_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"opt-66b does not fit on a100-80g TP1 PP1: 131 GB .* take a higher TP"):
        kv_room_tokens(shape("opt-66b"))
    with pytest.raises(ConfigError, match="1000000 are needed"):
        kv_room_tokens(shape("opt-13b"), least_tokens=1_000_000)


def test_a_cut_that_does_not_divide_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not divide the 40 heads"):
        shape("opt-13b", tp=3)
    with pytest.raises(ConfigError, match="does not divide the 64 layers"):
        shape("opt-66b", tp=4, pp=3)


@pytest.mark.parametrize(("model", "tp"), [(model, tp) for model, by_tp in FITS["distserve"].items() for tp in by_tp])
def test_the_roofline_is_near_the_fits_where_rates_rule(model: str, tp: int) -> None:
    """Long prompts and large batches; small steps took that engine up to 45 % longer: see docs/planner.md."""
    computed = stage_costs(shape(model, tp))
    prefill, decode = (fitted_costs(shape(model, tp), role) for role in (Role.PREFILL, Role.DECODE))
    assert computed.prefill_s(2048, 0, 2048) == pytest.approx(prefill.prefill_s(2048, 0, 2048), rel=0.15)
    ratio = computed.answers_s(16, 800) / decode.answers_s(16, 800)
    assert 0.55 < ratio < 1.1


def test_fits_are_the_published_formula() -> None:
    """OPT-13B, TP 1: 16.457 + 0.092648 t + 6.4748e-6 t2, and 19.935 + 6.2694e-4 context + 0.038507 batch (ms)."""
    prefill, decode = (fitted_costs(shape("opt-13b"), role) for role in (Role.PREFILL, Role.DECODE))
    assert prefill.step_s([(1000, 0)]) == pytest.approx(0.016457 + 0.092648 + 0.0064748, rel=1e-3)
    assert decode.answers_s(10, 800) == pytest.approx(0.019935 + 6.2694e-7 * 8000 + 0.00038507, rel=1e-3)


def test_a_tp_without_a_fit_lies_between_its_neighbours() -> None:
    for role in (Role.PREFILL, Role.DECODE, Role.MIXED):
        two, three, four = (fitted_costs(shape("opt-175b", tp), role).step_s([(64, 0)]) for tp in (2, 3, 4))
        assert four < three < two


def test_knots_grow_in_tokens_and_never_fall_in_time() -> None:
    for engine, by_model in FITS.items():
        for model in by_model:
            for role in (Role.PREFILL, Role.DECODE, Role.MIXED):
                knots = fitted_costs(shape(model, 4), role, engine).knots
                assert [count for count, _ in knots] == sorted({count for count, _ in knots})
                assert [seconds for _, seconds in knots] == sorted(seconds for _, seconds in knots)


def test_the_curve_is_flat_until_the_arithmetic_is_busy() -> None:
    one = shape("llama-3-8b", device="h100")
    ideal = Efficiency(operations=1, attention_operations=1, bandwidth=1, layer_s=0)
    costs = stage_costs(one, ideal)
    saturated = max(num_tokens for num_tokens, seconds in costs.knots if seconds < 1.02 * costs.pass_s(1))
    assert saturated == pytest.approx(989e12 / 3.35e12, rel=0.1)  # operations a byte; 2 of each a parameter
    assert costs.pass_s(saturated) == pytest.approx(costs.pass_s(1), rel=0.02)
    assert costs.pass_s(4 * saturated) == pytest.approx(4 * costs.pass_s(1), rel=0.02)


def test_ranks_pay_for_telling_each_other_and_stages_for_handing_on() -> None:
    whole, halves = stage_costs(shape("opt-66b", 2)), stage_costs(shape("opt-66b", 4))
    assert 0.5 < halves.pass_s(2048) / whole.pass_s(2048) < 0.6
    near = stage_costs(shape("opt-66b", 2, 2)).pass_s(2048)
    far = stage_costs(WorkerShape(MODELS["opt-66b"], A100, 2, 2, LINKS["25gbps"])).pass_s(2048)
    assert near == pytest.approx(whole.pass_s(2048) / 2, rel=0.01)
    assert far - near == pytest.approx(2048 * 9216 * 2 / 3.125e9, rel=0.05)


def test_ranks_beyond_the_kv_heads_keep_copies() -> None:
    eight, sixteen = shape("llama-3-8b", 8), shape("llama-3-8b", 16)
    weights = MODELS["llama-3-8b"].weight_bytes
    room = 80e9 * 0.95
    assert kv_room_tokens(sixteen) == pytest.approx(
        kv_room_tokens(eight) * (room - weights / 16) / (room - weights / 8)
    )
    assert stage_costs(sixteen).past_token_s == stage_costs(eight).past_token_s


def test_fits_are_taken_where_there_are_any() -> None:
    assert "fitted" in estimate_worker(shape("opt-13b"), Role.PREFILL).source
    assert "roofline" in estimate_worker(shape("opt-13b", device="h100"), Role.PREFILL).source
    assert "roofline" in estimate_worker(shape("opt-13b"), Role.PREFILL, "roofline").source
    with pytest.raises(ConfigError, match="take the roofline"):
        estimate_worker(shape("llama-3-8b"), Role.DECODE, "vllm")


def test_a_step_goes_through_all_stages() -> None:
    one, two = (estimate_worker(shape("opt-66b", 4, pp), Role.DECODE) for pp in (1, 2))
    assert 2 * two.stage.answers_s(8, 500) == pytest.approx(one.stage.answers_s(8, 500), rel=0.02)
    assert two.stage.answers_s(8, 500) < 0.55 * one.stage.answers_s(8, 500)
