"""From a kind of engine to one that is ready to be bound."""

from pathlib import Path

from diptych.core.clock import Clock
from diptych.core.control import EngineKind, KVDtype
from diptych.core.cost_model import CostModel
from diptych.engine.base import StepEngine
from diptych.engine.modeled_engine import ModeledEngine

MODELED_VOCAB_SIZE = 49152


def load_engine(  # noqa: PLR0913  all by keyword
    kind: EngineKind,
    *,
    model_dir: Path,
    eos_token_ids: frozenset[int],
    num_threads: int,
    kv_dtype: KVDtype,
    modeled_costs: CostModel,
    clock: Clock,
) -> StepEngine:
    """Load a model on the cores that the calling process is pinned to; `clock` is what the modeled engine sleeps on.

    Raises: EngineError if this machine cannot run it so.
    """
    if kind == "modeled":
        return ModeledEngine(modeled_costs, clock, MODELED_VOCAB_SIZE, eos_token_ids)
    # Here, so that a process without it starts without the second that its import takes.
    from diptych.engine.openvino_engine import OpenVinoEngine  # noqa: PLC0415

    return OpenVinoEngine(model_dir, eos_token_ids, num_threads, kv_dtype)
