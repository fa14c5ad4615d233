"""Hit rates of the eviction orders on Mooncake's conversation trace, by size of the cache.

One prefix cache, the live one, serves the trace's requests one after the other; sizes are shares of the trace's
footprint, the distinct full blocks of all its prompts. How long anything takes plays no part.

    python benchmarks/eviction.py --output benchmarks/results/simulated
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from diptych.core.control import EvictionName
from diptych.core.ids import BlockHash, BlockId
from diptych.kv.prefix_cache import PrefixCache
from diptych.policy.eviction import make_order
from diptych.sim.prompts import NumberedBlocks, NumberedPrompt, OfferedRequest, offered_by_trace
from diptych.workload.trace import BLOCK_TOKENS
from harness.conversation_trace import conversation_rows
from harness.options import CommonOptions, setting
from harness.program import Outcome, ProgressBar, run_program
from harness.result import Finding, single

SIZES = (1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 33, 36, 38, 40, 42, 45, 50, 60, 70, 80, 90, 100)
"""Percent of the footprint."""


@dataclass(frozen=True, kw_only=True)
class EvictionOptions(CommonOptions):
    """What to compare."""

    rows: int = setting(6000, "Of the trace, from its beginning.")
    sizes: tuple[float, ...] = setting(tuple(map(float, SIZES)), "Of the cache, in percent of the footprint.")


def prompts_of(offered: Sequence[OfferedRequest]) -> list[list[BlockHash]]:
    """Return the names of each prompt's full blocks."""
    hasher = NumberedBlocks()
    return [hasher.hash_blocks(NumberedPrompt(request, BLOCK_TOKENS)) for request in offered]


def count_hits(prompts: Sequence[Sequence[BlockHash]], eviction: EvictionName, num_blocks: int) -> int:
    """Return how many blocks are found in a cache of `num_blocks` that serves one prompt after the other.

    Of a prompt that is larger than the cache, the beginning is cached.
    """
    cache = PrefixCache([BlockId(number) for number in range(num_blocks)], order=make_order(eviction, num_blocks))
    num_hits = 0
    for hashes in prompts:
        shared = cache.match(hashes, len(hashes))
        num_hits += len(shared)
        num_new = min(len(hashes) - len(shared), cache.num_available_blocks)
        table = shared + (cache.try_allocate(num_new) or [])
        for index in range(len(shared), len(table)):
            cache.insert(hashes[index], table[index], table[index - 1] if index else None)
        cache.release(table)
    return num_hits


def draw(shares: dict[EvictionName, list[float]], sizes: Sequence[float], infinite: float, path: Path) -> None:
    """Draw hit rates over sizes, and by how much each differs from LRU."""
    import matplotlib as mpl  # noqa: PLC0415  an extra

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, (rates, gains) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, values in shares.items():
        rates.plot(sizes, values, marker="o", markersize=3, label=name)
        gains.plot(
            sizes, [value / lru - 1 for value, lru in zip(values, shares["lru"], strict=True)], marker="o", markersize=3
        )
    rates.axhline(infinite, color="gray", linestyle="--", label="infinite cache")
    rates.set(ylabel="share of blocks found", title="Mooncake's conversation trace, one cache")
    rates.legend()
    gains.set(ylabel="more than LRU finds, as a share of that")
    for panel in (rates, gains):
        panel.set_xscale("log")
        panel.set_xlabel("cache, percent of the footprint")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def measure(options: EvictionOptions, progress: ProgressBar) -> Outcome:
    """Replay at every size with every order."""
    prompts = prompts_of(list(offered_by_trace(conversation_rows(options.rows))))
    num_blocks = sum(map(len, prompts))
    footprint = len({block_hash for hashes in prompts for block_hash in hashes})
    names: tuple[EvictionName, ...] = get_args(EvictionName)
    hits: dict[EvictionName, list[int]] = {name: [] for name in names}
    progress.expect(len(options.sizes))
    for size in options.sizes:
        with progress.part(f"{size:g} %"):
            for name in names:
                hits[name].append(count_hits(prompts, name, max(round(footprint * size / 100), 1)))
    findings = [
        Finding(
            what=f"blocks found by reuse-aware over lru, cache of {size:g} % of the footprint",
            measured=single(aware / lru if lru else 1.0),
            unit="",
            at_least=1.0,
        )
        for size, lru, aware in zip(options.sizes, hits["lru"], hits["reuse-aware"], strict=True)
    ]
    infinite = (num_blocks - footprint) / num_blocks
    shares = {name: [count / num_blocks for count in counts] for name, counts in hits.items()}
    return Outcome(
        findings=findings,
        samples={"num_blocks": num_blocks, "footprint_blocks": footprint, "sizes_percent": options.sizes, "hits": hits},
        notes=[f"{num_blocks:,} full blocks in prompts, {footprint:,} distinct; an infinite cache hits {infinite:.1%}"],
        plot=lambda path: draw(shares, options.sizes, infinite, path),
    )


if __name__ == "__main__":
    run_program("eviction", EvictionOptions, __doc__, measure)
