"""The tiers below a worker's blocks: what goes down to them, what comes up, and what is told of them.

Each block goes down to every tier: to the disk, which is near, and to a store that machines share, where others find
it. It comes up from the nearest one that has it.
"""

from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from diptych.core.cache_status import CacheStatus, TierState
from diptych.core.clock import Clock
from diptych.core.control import WorkerOrder
from diptych.core.cost_model import CostModel
from diptych.core.ids import BlockHash
from diptych.engine.base import StepEngine
from diptych.hardware.host import host_facts
from diptych.kv.prefix_cache import PrefixCache
from diptych.tiers.base import BlockTier
from diptych.tiers.chain import TierChain
from diptych.tiers.disk import DiskTier
from diptych.tiers.disk_store import DiskSettings
from diptych.tiers.kv_key import kv_key
from diptych.tiers.mooncake import MooncakeTier
from diptych.tiers.mooncake_link import StoreSettings
from diptych.worker.cache_use import CacheUse
from diptych.worker.demotion import BUSY_SHARE, Demotions
from diptych.worker.load import Speed
from diptych.worker.memory import WorkerMemory
from diptych.worker.promotion import Promotions
from diptych.worker.sequence_blocks import SequenceBlocks

FAREWELL_S = 2.0
"""What an ending worker may take to store what it has not stored yet."""
POLL_S = 0.005


class Tiering:
    """One worker's use of its tiers. Owned by its loop."""

    def __init__(  # noqa: PLR0913, PLR0917  the parts that it is made of
        self,
        tiers: Sequence[BlockTier],
        blocks: SequenceBlocks,
        memory: WorkerMemory,
        costs: CostModel,
        speed: Speed,
        chunk_tokens: int,
        clock: Clock,
    ) -> None:
        """`tiers`: at least one, the nearest first."""
        self.tiers = tiers
        self.promotions = Promotions(TierChain(tiers), blocks, memory, costs, speed, chunk_tokens, clock)
        busy_share = BUSY_SHARE / len(tiers)
        self._demotions = [Demotions(tier, blocks.cache, memory, clock, busy_share) for tier in tiers]
        self._clock = clock
        blocks.on_named = self.add

    def add(self, hashes: Iterable[BlockHash]) -> None:
        """Remember blocks that are findable now, to be stored."""
        named = list(hashes)
        for demotions in self._demotions:
            demotions.add(named)

    def on_turn(self, *, is_busy: bool) -> None:
        """Hand blocks down; beside work, a little at a time."""
        for demotions in self._demotions:
            demotions.on_turn(is_busy=is_busy)

    @property
    def num_waiting_blocks(self) -> int:
        """How many are to be stored, of all tiers together."""
        return sum(demotions.num_waiting for demotions in self._demotions)

    @property
    def num_lost_blocks(self) -> int:
        """How many were evicted before they could be stored, of all tiers together."""
        return sum(demotions.num_lost_blocks for demotions in self._demotions)

    def close(self, on_wait: Callable[[], None]) -> None:
        """Store what is not stored yet, as far as there is time; call `on_wait` often meanwhile."""
        give_up_s = self._clock.now_s() + FAREWELL_S
        self.on_turn(is_busy=False)
        while self._can_store_more() and self._clock.now_s() < give_up_s:
            on_wait()
            self._clock.sleep(POLL_S)
            self.on_turn(is_busy=False)
        for tier in self.tiers:
            tier.close(max(give_up_s - self._clock.now_s(), POLL_S))

    def _can_store_more(self) -> bool:
        return any(
            demotions.num_waiting and tier.status().state is TierState.READY
            for tier, demotions in zip(self.tiers, self._demotions, strict=True)
        )


def open_tiers(
    order: WorkerOrder, engine: StepEngine, clock: Clock, on_change: Callable[[], None]
) -> Sequence[BlockTier]:
    """Return the tiers that the worker was told to have, the nearest first; none if it has no blocks to store."""
    if not order.writes_answers:
        return ()
    key = kv_key(engine.layout.fingerprint, _facts(order, engine))
    tiers: list[BlockTier] = []
    if (disk := order.disk) is not None:
        disk_settings = DiskSettings(
            root=Path(disk.folder),
            key=key,
            block_bytes=engine.layout.block_bytes,
            limit_bytes=disk.limit_bytes,
            num_sharers=disk.num_sharers,
        )
        tiers.append(DiskTier(disk_settings, clock, on_change))
    if (store := order.store) is not None:
        store_settings = StoreSettings(
            master=store.master, host=store.host, key=key, block_bytes=engine.layout.block_bytes
        )
        tiers.append(MooncakeTier(store_settings, clock, on_change))
    return tiers


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
        num_shared_tokens=use.num_shared_tokens,
        num_computed_tokens=use.num_computed_tokens,
        num_copied_tokens=use.num_copied_tokens,
        num_copied_bytes=num_copied_bytes,
        num_declined_loads=0 if tiering is None else tiering.promotions.num_declined,
        num_lost_blocks=0 if tiering is None else tiering.num_lost_blocks,
        tiers=() if tiering is None else tuple(tier.status() for tier in tiering.tiers),
    )
