"""Mooncake's headlines: long contexts, the ranking of schedulers, overload. SIMULATED.

Llama 2 70B, each worker on eight A100 (`diptych.hardware.known_costs`), as in the paper.

*Long contexts*: four workers, prompts of 16,000 to 128,000 tokens, half of each in common, answers of 512. Throughput
is the goodput within 10 times the TTFT and 5 times the TPOT of a lone request, by the best split of prefill and decode
workers over that of four colocated ones that read whole prompts first, as vLLM did; also over colocated ones that take
requests one by one, as the paper says vLLM has to in order to keep its token gaps.

*Ranking*: from `benchmarks/results/simulated/routing_replay.json`, which `benchmarks/routing_replay.py` writes.

*Overload*: 8 prefill and 8 decode workers, the conversation trace faster than it was recorded (theirs: twice, here
`--speed` times, where about as much must be refused), by admission. Lost is what is refused, late or failed.

    python benchmarks/headlines/run.py mooncake --output benchmarks/results/simulated/headlines
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from diptych.core.control import AdmissionName
from diptych.core.messages import Role
from diptych.core.slo import Slo
from diptych.hardware.known_costs import LLAMA2_70B_EIGHT_A100, LLAMA2_70B_KV_BYTES_A_TOKEN
from diptych.planner.goodput import COARSE, judge, search_goodput
from diptych.router.settings import RouterSettings
from diptych.sim.cluster import SimulatedCluster
from diptych.sim.plan import Batching, ClusterPlan, LinkPlan, WorkerGroup, WorkerPlan
from diptych.sim.prompts import OfferedRequest, offered_by_trace
from diptych.workload.arrivals import Arrivals
from diptych.workload.trace import BLOCK_TOKENS
from harness.conversation_trace import conversation_rows
from harness.options import CommonOptions, setting
from harness.program import Outcome, ProgressBar
from harness.result import load_result
from headlines.comparison import Comparison, findings, samples, table

COSTS = LLAMA2_70B_EIGHT_A100
NUM_WORKERS = 4
PROMPT_TOKENS = (16_000, 32_000, 64_000, 128_000)
ANSWER_TOKENS = 512
COMMON_SHARE = 0.5
TTFT_TIMES, TPOT_TIMES = 10.0, 5.0
"""Of what a lone request takes: the limits."""
LONG_REQUESTS = 200
NETWORK_BYTES_PER_S = 100e9
"""Eight cards of 100 Gbit/s a node."""
CACHE_BYTES = 1e12
"""Of host memory a worker."""
ROUTING_REPLAY = Path(__file__).parents[1] / "results" / "simulated" / "routing_replay.json"
PUBLISHED_TTFT_S = {"random": 19.65, "least-loaded": 5.27, "prefix-local": 3.58, "kv-centric": 3.07}
"""FAST 2025, mean over its conversation trace."""
PUBLISHED_REFUSED = {"none": 4183 / 23_000, "early": 3771 / 23_000, "predictive": 3589 / 23_000}
"""arXiv 2407.00079, section 7: of 23,000 requests; its baseline is none that we have, it refuses after the prefill."""
OVERLOAD_SLO = Slo(30.0, 0.1)


@dataclass(frozen=True, kw_only=True)
class MooncakeOptions(CommonOptions):
    """What to simulate."""

    rows: int = setting(4000, "Of the trace, for overload.")
    speed: float = setting(3.0, "Of its replay, times the recorded one.")
    processes: int = setting(2, "Simulations at a time.")


def long_requests(num_prompt_tokens: int, rate_per_s: float, seed: int) -> list[OfferedRequest]:
    """Return prompts of one length, of which the first half is common to all."""
    num_blocks = -(-num_prompt_tokens // BLOCK_TOKENS)
    num_common = int(num_blocks * COMMON_SHARE)
    offered = []
    numbers = count(num_common)
    for arrival_s in islice(Arrivals(rate_per_s).times_s(seed), LONG_REQUESTS):
        own = tuple(islice(numbers, num_blocks - num_common))
        offered.append(OfferedRequest(arrival_s, num_prompt_tokens, ANSWER_TOKENS, (*range(num_common), *own)))
    return offered


def long_slo(num_prompt_tokens: int) -> Slo:
    """Return the limits for a length: multiples of what a lone request takes without a cache."""
    ttft_s = COSTS.prefill_s(num_prompt_tokens, 0, 2048)
    return Slo(TTFT_TIMES * ttft_s, TPOT_TIMES * COSTS.answers_s(1, num_prompt_tokens))


def long_plan(num_prefill: int, batching: Batching, max_num_seqs: int) -> ClusterPlan:
    """Return four workers, so many of which read only; 0: all do both."""
    block_bytes = BLOCK_TOKENS * LLAMA2_70B_KV_BYTES_A_TOKEN
    owner = WorkerPlan(
        costs=COSTS, num_blocks=int(CACHE_BYTES / block_bytes), batching=batching, max_num_seqs=max_num_seqs
    )
    reader = WorkerPlan(costs=COSTS, num_blocks=0)
    machines = tuple(f"node {number}" for number in range(NUM_WORKERS))
    groups: tuple[WorkerGroup, ...] = (WorkerGroup(Role.MIXED, NUM_WORKERS, owner, machines),)
    if num_prefill:
        groups = (
            WorkerGroup(Role.PREFILL, num_prefill, reader, machines[:num_prefill]),
            WorkerGroup(Role.DECODE, NUM_WORKERS - num_prefill, owner, machines[num_prefill:]),
        )
    return ClusterPlan(
        groups=groups,
        block_size=BLOCK_TOKENS,
        max_model_len=1_000_000,
        router=RouterSettings(routing="overlap-load", max_outstanding_requests=1_000_000),
        link=LinkPlan(bytes_per_s=NETWORK_BYTES_PER_S, kv_bytes_per_token=LLAMA2_70B_KV_BYTES_A_TOKEN),
    )


LONG_SET_UPS: dict[str, tuple[int, Batching, int]] = {
    "3P+1D": (3, "chunked", 256),
    "2P+2D": (2, "chunked", 256),
    "4 colocated": (0, "prefill-first", 256),
    "4 colocated, one by one": (0, "prefill-first", 1),
}


def long_goodput(set_up: str, num_prompt_tokens: int, seed: int) -> float:
    """Return the goodput of four workers, requests a second."""
    slo, plan = long_slo(num_prompt_tokens), long_plan(*LONG_SET_UPS[set_up])
    start_per_s = NUM_WORKERS / COSTS.prefill_s(num_prompt_tokens, 0, 2048)

    def run(rate_per_s: float) -> Any:
        return judge(SimulatedCluster(plan).serve(long_requests(num_prompt_tokens, rate_per_s, seed)), slo)

    return search_goodput(run, start_per_s, COARSE).per_s


def overload(options: MooncakeOptions, admission: AdmissionName) -> float:
    """Return the share of requests that are lost."""
    block_bytes = BLOCK_TOKENS * LLAMA2_70B_KV_BYTES_A_TOKEN
    owner = WorkerPlan(costs=COSTS, num_blocks=int(CACHE_BYTES / block_bytes), copy_block_s=block_bytes / 100e9)
    plan = ClusterPlan(
        groups=(
            WorkerGroup(Role.PREFILL, 8, WorkerPlan(costs=COSTS, num_blocks=0)),
            WorkerGroup(Role.DECODE, 8, owner),
        ),
        block_size=BLOCK_TOKENS,
        max_model_len=1_000_000,
        router=RouterSettings(
            routing="kv-centric",
            admission=admission,
            slo_ttft_s=OVERLOAD_SLO.ttft_s,
            slo_tpot_s=OVERLOAD_SLO.tpot_s,
            max_outstanding_requests=1_000_000,
        ),
    )
    outcomes = list(SimulatedCluster(plan).serve(offered_by_trace(conversation_rows(options.rows), options.speed)))
    return float(np.mean([not one.meets(OVERLOAD_SLO) for one in outcomes]))


def compare(long: dict[str, list[float]], mean_ttft_s: dict[str, float], lost: dict[str, float]) -> list[Comparison]:
    """Return everything side by side."""
    apart = [max(pair) for pair in zip(long["3P+1D"], long["2P+2D"], strict=True)]
    rows: list[Comparison] = []
    for name, published in (("4 colocated", (1.5, 6.25)), ("4 colocated, one by one", (1.5, 6.25))):
        gains = [gain / base for gain, base in zip(apart, long[name], strict=True)]
        for gain, label in ((min(gains), "least"), (max(gains), "most")):
            rows.append(_row(f"throughput, long contexts, over {name}: {label}", published, gain))
    slowest = mean_ttft_s["random"]
    for policy in ("least-loaded", "prefix-local", "kv-centric"):
        ratio = PUBLISHED_TTFT_S["random"] / PUBLISHED_TTFT_S[policy]
        rows.append(_row(f"mean TTFT, random over {policy}", (ratio, ratio), slowest / mean_ttft_s[policy]))
    for admission, share in PUBLISHED_REFUSED.items():
        rows.append(_row(f"overload: share lost, {admission}", (100 * share, 100 * share), 100 * lost[admission], "%"))
    for admission in ("none", "early"):
        ratio = PUBLISHED_REFUSED[admission] / PUBLISHED_REFUSED["predictive"]
        simulated = lost[admission] / lost["predictive"]
        rows.append(_row(f"overload: lost with {admission} over predictive", (ratio, ratio), simulated))
    return rows


def _row(what: str, published: tuple[float, float], simulated: float, unit: str = "x") -> Comparison:
    low, high = (round(limit, 2) for limit in published)
    return Comparison(what, (low, high), simulated, unit)


def ranking() -> dict[str, float]:
    """Return mean TTFT by scheduler in the coupled cluster, seconds.

    Raises: BenchError if there is no result of routing_replay.
    """
    runs = load_result(ROUTING_REPLAY).samples["runs"]
    return {run["routing"]: run["mean_ttft_s"] for run in runs if run["cluster"] == "coupled"}


def draw(long: dict[str, list[float]], mean_ttft_s: dict[str, float], lost: dict[str, float], path: Path) -> None:
    """Draw the three parts."""
    import matplotlib as mpl  # noqa: PLC0415  an extra

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    for set_up, goodputs in long.items():
        left.plot(PROMPT_TOKENS, goodputs, marker="o", label=set_up)
    left.set(xscale="log", yscale="log", xlabel="prompt tokens", ylabel="requests/s", title="long contexts (simulated)")
    left.legend()
    for panel, published, simulated, title in (
        (middle, PUBLISHED_TTFT_S, mean_ttft_s, "mean TTFT by scheduler, s"),
        (right, PUBLISHED_REFUSED, lost, "share lost in overload"),
    ):
        places = np.arange(len(published))
        panel.bar(places - 0.2, list(published.values()), 0.4, label="published")
        panel.bar(places + 0.2, [simulated[name] for name in published], 0.4, label="simulated")
        panel.set_xticks(places, list(published), rotation=20)
        panel.set(title=title)
        panel.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def measure(options: MooncakeOptions, progress: ProgressBar) -> Outcome:
    """Simulate long contexts and overload; read the ranking."""
    mean_ttft_s = ranking()
    progress.expect(len(LONG_SET_UPS) * len(PROMPT_TOKENS) + len(PUBLISHED_REFUSED))
    with ProcessPoolExecutor(options.processes) as pool:
        long_pending = {
            (set_up, tokens): pool.submit(long_goodput, set_up, tokens, options.seed)
            for set_up in LONG_SET_UPS
            for tokens in PROMPT_TOKENS
        }
        lost_pending = {name: pool.submit(overload, options, name) for name in ("none", "early", "predictive")}
        long: dict[str, list[float]] = {set_up: [] for set_up in LONG_SET_UPS}
        for (set_up, tokens), future in long_pending.items():
            with progress.part(f"{set_up}, {tokens} tokens"):
                long[set_up].append(future.result())
        lost: dict[str, float] = {}
        for name, share in lost_pending.items():
            with progress.part(f"overload, {name}"):
                lost[name] = share.result()
    comparisons = compare(long, mean_ttft_s, lost)
    return Outcome(
        findings=findings(comparisons),
        samples={"comparisons": samples(comparisons), "long": long, "lost": lost, "prompt_tokens": PROMPT_TOKENS},
        notes=table(comparisons),
        plot=lambda path: draw(long, mean_ttft_s, lost, path),
    )
