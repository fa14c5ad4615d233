"""What `diptych calibrate` has measured of a model on this machine, as a JSON file.

One file a model, engine and kind of CPU, below the cache's root. Whoever predicts how long something takes (admission,
routing, batching, planner, simulator) reads its cost models; who has none uses a built-in guess, corrected by what the
workers' steps really take.
"""

import hashlib
from pathlib import Path

import msgspec

from diptych.core.cost_model import CostModel
from diptych.core.errors import ConfigError
from diptych.core.whole_file import write_whole

PROFILE_FORMAT = 1


class FitError(msgspec.Struct, frozen=True):
    """How far a cost model is from steps that it has not been fitted to; shares of the measured time."""

    mean: float
    worst: float
    num_steps: int


class WorkerCosts(msgspec.Struct, frozen=True, kw_only=True):
    """Step times of a worker with so many cores."""

    num_cores: int
    costs: CostModel
    error: FitError


class Interference(msgspec.Struct, frozen=True, kw_only=True):
    """Step times beside a busy worker of the other phase on other cores, over those on a quiet machine."""

    decode_factor: float
    prefill_factor: float


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """All that was measured of one model on one machine."""

    format: int = PROFILE_FORMAT
    model_name: str
    model_key: str
    """Names the weights."""
    engine: str
    """Such as `openvino bf16 KV`; another precision of the cache takes other times."""
    cpu: str
    measured_at: str
    versions: dict[str, str]
    workers: list[WorkerCosts]
    """By number of cores, each once."""
    interference: Interference | None
    """None on a machine with one core."""
    handover_s: float | None
    """From the first token to the start of the decode step that goes on; None where it was not measured."""

    def costs_for(self, num_cores: int) -> CostModel:
        """Return the model of a worker with `num_cores`, or with the nearest number that was measured."""
        return min(self.workers, key=lambda worker: (abs(worker.num_cores - num_cores), worker.num_cores)).costs


def profile_path(root: Path, model_key: str, engine: str, cpu: str) -> Path:
    """Return where the profile of a model by this engine (and KV precision) on this kind of CPU is kept."""
    machine = hashlib.sha256(f"{engine}\n{cpu}".encode()).hexdigest()[:12]
    return root / "profiles" / f"{model_key}-{machine}.json"


def write_profile(profile: Profile, path: Path) -> None:
    """Write it so that a reader sees the old file or the whole new one.

    Raises: ConfigError if that cannot be done.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, msgspec.json.format(msgspec.json.encode(profile), indent=2) + b"\n")
    except OSError as error:
        raise ConfigError(f"cannot write the profile {path}: {error.strerror}") from None


def read_profile(path: Path) -> Profile:
    """Read a profile.

    Raises: ConfigError, one line that says what is wrong and what to do.
    """
    try:
        profile = msgspec.json.decode(path.read_bytes(), type=Profile)
    except OSError as error:
        raise ConfigError(f"cannot read the profile {path}: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path} is no profile ({error}); make a new one with `diptych calibrate`") from None
    if profile.format != PROFILE_FORMAT or not profile.workers:
        raise ConfigError(f"{path} is a profile of another release; make a new one with `diptych calibrate`")
    return profile
