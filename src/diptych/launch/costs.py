"""How long steps will take on each worker: from this machine's profile, or by a built-in guess."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from diptych.core.config import ServeConfig
from diptych.core.cost_model import CostModel
from diptych.core.errors import ConfigError
from diptych.core.ids import WorkerId
from diptych.hardware.host import host_facts
from diptych.hardware.known_costs import SMOLLM2_135M_ONE_AVX512_CORE, modeled_costs
from diptych.hardware.profile import Profile, profile_path, read_profile
from diptych.models import ModelFolder, default_cache_dir

FURTHER_CORE_GAIN = 0.6
"""What a second core and each further one adds to a worker's speed, where nothing has been measured."""


class Costs(NamedTuple):
    """Cost models, and where they come from."""

    models: dict[WorkerId, CostModel]
    source: str
    """For people."""


def find_costs(config: ServeConfig, model: ModelFolder, engine: str, cores: Mapping[WorkerId, Sequence[int]]) -> Costs:
    """Return how long steps take on workers of `engine` with these cores.

    Raises: ConfigError if a profile was asked for that cannot be read or is of something else.
    """
    if config.engine == "modeled":
        known = modeled_costs(config.modeled_time_scale)
        return Costs(dict.fromkeys(cores, known), "the modeled engine's own model")
    profile, complaint = _find_profile(config, model, engine)
    if profile is None:
        guesses = {
            worker_id: SMOLLM2_135M_ONE_AVX512_CORE.scaled(1 / (1 + FURTHER_CORE_GAIN * (len(own) - 1)))
            for worker_id, own in cores.items()
        }
        return Costs(guesses, f"a guess{complaint}; `diptych calibrate` measures this machine")
    models = {worker_id: profile.costs_for(len(own)) for worker_id, own in cores.items()}
    return Costs(models, f"this machine's profile of {profile.measured_at[:10]}")


def _find_profile(config: ServeConfig, model: ModelFolder, engine: str) -> tuple[Profile | None, str]:
    """Return the profile, or None and why, where there is more to say than that there is none."""
    if config.profile is not None:
        profile = read_profile(config.profile)
        if (profile.model_key, profile.engine) != (model.key, engine):
            raise ConfigError(
                f"{config.profile} is a profile of {profile.model_name} on {profile.engine}, not of these weights of "
                f"{model.name} on {engine}; make one with `diptych calibrate`"
            )
        return profile, ""
    path = profile_path(default_cache_dir(), model.key, engine, host_facts().cpu_model)
    if not path.exists():
        return None, ""
    try:
        return read_profile(path), ""
    except ConfigError as error:
        return None, f" ({error})"
