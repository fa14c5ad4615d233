"""The tier below a worker's blocks: what goes down to it, what comes up, and what is told of it."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from diptych.core.cache_status import CacheStatus, TierState
from diptych.core.clock import Clock
from diptych.core.control import WorkerOrder
from diptych.core.cost_model import CostModel
from diptych.engine.base import StepEngine
from diptych.hardware.host import host_facts
from diptych.kv.prefix_cache import PrefixCache
from diptych.tiers.base import BlockTier
from diptych.tiers.disk import DiskTier
from diptych.tiers.disk_key import disk_key
from diptych.tiers.disk_store import DiskSettings
from diptych.worker.cache_use import CacheUse
from diptych.worker.demotion import Demotions
from diptych.worker.load import Speed
from diptych.worker.memory import WorkerMemory
from diptych.worker.promotion import Promotions
from diptych.worker.sequence_blocks import SequenceBlocks

FAREWELL_S = 2.0
"""What an ending worker may take to store what it has not stored yet."""
POLL_S = 0.005


class Tiering:
    """One worker's use of a tier. Owned by its loop."""

    def __init__(  # noqa: PLR0913, PLR0917  the parts that it is made of
        self,
        tier: BlockTier,
        blocks: SequenceBlocks,
        memory: WorkerMemory,
        costs: CostModel,
        speed: Speed,
        chunk_tokens: int,
        clock: Clock,
    ) -> None:
        self.tier = tier
        self.promotions = Promotions(tier, blocks, memory, costs, speed, chunk_tokens, clock)
        self.demotions = Demotions(tier, blocks.cache, memory, clock)
        self._clock = clock
        blocks.on_named = self.demotions.add

    def close(self, on_wait: Callable[[], None]) -> None:
        """Store what is not stored yet, as far as there is time; call `on_wait` often meanwhile."""
        give_up_s = self._clock.now_s() + FAREWELL_S
        self.demotions.on_turn(is_busy=False)
        while self.demotions.num_waiting and self._clock.now_s() < give_up_s:
            if self.tier.status().state is not TierState.READY:
                break
            on_wait()
            self._clock.sleep(POLL_S)
            self.demotions.on_turn(is_busy=False)
        self.tier.close(max(give_up_s - self._clock.now_s(), POLL_S))


def open_disk_tier(
    order: WorkerOrder, engine: StepEngine, clock: Clock, on_change: Callable[[], None]
) -> DiskTier | None:
    """Return the disk tier that the worker was told to have; None: none, or it has no blocks to store."""
    if order.disk is None or not order.writes_answers:
        return None
    settings = DiskSettings(
        root=Path(order.disk.folder),
        key=disk_key(engine.layout.fingerprint, _facts(order, engine)),
        block_bytes=engine.layout.block_bytes,
        limit_bytes=order.disk.limit_bytes,
        num_sharers=order.disk.num_sharers,
    )
    return DiskTier(settings, clock, on_change)


def _facts(order: WorkerOrder, engine: StepEngine) -> dict[str, str]:
    """Return all on which KV depends, to the last bit, besides its layout and the tokens."""
    return {
        "model": order.model.key,
        "engine": engine.name,
        "openvino": version("openvino"),
        "threads": str(len(order.cores)),
        "cpu": host_facts().cpu_model,
        "exact": str(order.is_exact),
    }


def cache_status(
    cache: PrefixCache, block_bytes: int, use: CacheUse, num_copied_bytes: int, tiering: Tiering | None
) -> CacheStatus:
    """Return what a heartbeat tells of the cache."""
    return CacheStatus(
        block_bytes=block_bytes,
        num_findable_blocks=cache.num_findable_blocks,
        num_evicted_blocks=cache.num_evicted_blocks,
        num_asked_tokens=use.num_asked_tokens,
        num_memory_tokens=use.num_memory_tokens,
        num_tier_tokens=use.num_loaded_tokens,
        num_computed_tokens=use.num_computed_tokens,
        num_copied_tokens=use.num_copied_tokens,
        num_copied_bytes=num_copied_bytes,
        num_declined_loads=0 if tiering is None else tiering.promotions.num_declined,
        num_lost_blocks=0 if tiering is None else tiering.demotions.num_lost_blocks,
        tier=None if tiering is None else tiering.tier.status(),
    )
