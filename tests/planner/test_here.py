"""Plans for a machine by its own profile."""

import tomllib
from concurrent.futures import ThreadPoolExecutor

import pytest

from diptych.core.config import ServeConfig
from diptych.core.cost_model import CostModel
from diptych.core.errors import ConfigError
from diptych.core.slo import Slo
from diptych.hardware.known_costs import SMOLLM2_135M_ONE_AVX512_CORE
from diptych.hardware.profile import FitError, Interference, Profile, WorkerCosts
from diptych.planner.here import Arrangement, Machine, arrangements, local_cluster, search_here, serve_toml
from diptych.planner.load import Load
from diptych.workload.named import WORKLOADS


def worker(num_cores: int, costs: CostModel) -> WorkerCosts:
    return WorkerCosts(num_cores=num_cores, costs=costs, error=FitError(0.0, 0.0, 0))


MACHINE = Machine(
    profile=Profile(
        model_name="smollm2-135m-instruct",
        model_key="key",
        engine="openvino bf16 KV",
        cpu="a CPU",
        measured_at="2026-11-26T00:00:00+00:00",
        versions={},
        workers=[worker(1, SMOLLM2_135M_ONE_AVX512_CORE), worker(2, SMOLLM2_135M_ONE_AVX512_CORE.scaled(0.6))],
        interference=Interference(decode_factor=1.05, prefill_factor=1.1),
        handover_s=None,
    ),
    num_cores=2,
    config=ServeConfig(),
    kv_bytes_a_token=23_040,
)


def test_every_arrangement_gives_each_worker_a_core() -> None:
    found = list(arrangements(3))
    assert len(found) == len(set(found)) == 2 * (3 + 1 + 2)
    assert all(1 <= one.num_workers <= 3 for one in found)
    assert Arrangement(1, 2, 0, True) in found


def test_workers_get_the_blocks_that_serve_would_give_them() -> None:
    plan = local_cluster(MACHINE, Arrangement(1, 1, 0, is_adaptive=True), Slo(1.0, 0.05))
    prefill, decode = (group.plan.num_blocks for group in plan.groups)
    assert decode == pytest.approx(2 * prefill, abs=1)
    assert (prefill + decode) * 32 * 23_040 == pytest.approx(1e9, rel=0.01)
    strict = local_cluster(MACHINE, Arrangement(1, 1, 0, is_adaptive=False), Slo(1.0, 0.05))
    assert strict.groups[0].plan.num_blocks == 0


def test_too_little_memory_is_refused() -> None:
    machine = Machine(profile=MACHINE.profile, num_cores=2, config=ServeConfig(kv_bytes=10**5), kv_bytes_a_token=10**6)
    with pytest.raises(ConfigError, match="too little for 1 prefill"):
        local_cluster(machine, Arrangement(1, 1, 0, is_adaptive=True), Slo(1.0, 0.05))


def test_the_best_arrangement_is_a_configuration_of_serve() -> None:
    slo = Slo(1.0, 0.0414)
    load = Load(source=WORKLOADS["chat"], fewest_requests=80, most_requests=100)
    with ThreadPoolExecutor(1) as executor:
        verdicts = search_here(MACHINE, load, slo, executor, lambda *_: None)
    assert len(verdicts) == 6
    rates = [verdict.goodput.per_s for verdict in verdicts]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 1.0
    config = ServeConfig.model_validate(tomllib.loads(serve_toml(MACHINE, verdicts[0], slo)))
    best = verdicts[0].arrangement
    assert (config.num_prefill, config.num_decode, config.mixed) == (best.prefill, best.decode, best.mixed)
    assert (config.adaptive, config.slo_tpot_s) == (best.is_adaptive, 0.0414)
