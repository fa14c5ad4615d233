"""How long does a routing policy take to choose among many workers?

Half of them read prompts and half write answers, with loads and prefixes drawn from the seed. Nothing is served: the
policies are asked in this process, each with the same questions. `--engine` has no effect.
"""

import random
import time
from dataclasses import dataclass

from diptych.bench.statistics import estimate_median, percentile
from diptych.core.cost_model import count_pairs
from diptych.core.ids import WorkerId
from diptych.core.messages import Role
from diptych.core.slo import Slo
from diptych.hardware.known_costs import SMOLLM2_135M_ONE_AVX512_CORE
from diptych.policy.pairing import WorkerLoad
from diptych.policy.routing.by_name import POLICIES
from diptych.policy.routing.fleet import Fleet
from diptych.policy.routing.question import Question, RoutingPolicy, Rules
from harness.options import Options, setting
from harness.program import Outcome, ProgressBar, run_program
from harness.result import Finding

BLOCK_SIZE = 32
MOST_MEDIAN_MS = 1.0


@dataclass(frozen=True, kw_only=True)
class RoutingOptions(Options):
    """Flags of this benchmark."""

    num_workers: int = setting(1_000, "Workers to choose among.")
    num_decisions: int = setting(200, "Questions, each of which every policy is asked.")
    prompt_tokens: int = setting(4_000, "Length of each prompt.")


def measure(options: RoutingOptions, progress: ProgressBar) -> Outcome:
    """Ask every policy the same questions."""
    progress.expect(len(POLICIES))
    draw = random.Random(options.seed)
    loads = Fleet.of([make_load(number, draw) for number in range(options.num_workers)])
    owners = [load.worker_id for load in loads if load.role is Role.DECODE]
    questions = [make_question(owners, options.prompt_tokens, draw) for _ in range(options.num_decisions)]
    samples: dict[str, list[float]] = {}
    for name, policy in POLICIES.items():
        with progress.part(name):
            samples[name] = [
                _duration_s(policy, question, loads, turn, options.seed) for turn, question in enumerate(questions)
            ]
    findings = []
    for policy_name, durations_s in samples.items():
        times_ms = [duration_s * 1e3 for duration_s in durations_s]
        findings.append(
            Finding(
                what=f"{policy_name}, {options.num_workers} workers (p99 {percentile(times_ms, 99.0):.2f} ms)",
                measured=estimate_median(times_ms, options.seed),
                unit="ms",
                at_most=MOST_MEDIAN_MS,
            )
        )
    return Outcome(findings, dict(samples))


def make_load(number: int, draw: random.Random) -> WorkerLoad:
    """Return a worker with something to do; every other one reads prompts."""
    role = Role.PREFILL if number % 2 else Role.DECODE
    num_answers = 0 if role is Role.PREFILL else draw.randrange(8)
    num_prompts = draw.randrange(4) if role is Role.PREFILL else 0
    return WorkerLoad(
        worker_id=WorkerId(f"{role}-{number}"),
        role=role,
        is_accepting=draw.random() > 0.02,
        costs=SMOLLM2_135M_ONE_AVX512_CORE,
        cost_scale=draw.uniform(0.8, 1.2),
        num_blocks=0 if role is Role.PREFILL else 4_000,
        num_used_blocks=num_answers * 100,
        num_answers=num_answers,
        num_unread=0,
        num_context_tokens=num_answers * 100 * BLOCK_SIZE,
        num_queued_prompts=num_prompts,
        num_queued_tokens=num_prompts * 2_000,
        num_queued_pairs=num_prompts * count_pairs(2_000, 0),
        prefill_share=0.0,
    )


def make_question(owners: list[WorkerId], prompt_tokens: int, draw: random.Random) -> Question:
    """Return a prompt of which every other owner has something."""
    num_blocks = prompt_tokens // BLOCK_SIZE
    matched = {owner: draw.randrange(1, num_blocks + 1) * BLOCK_SIZE for owner in owners[draw.randrange(2) :: 2]}
    return Question(prompt_tokens, matched, 200.0, prompt_tokens + 1_000)


def _duration_s(policy: RoutingPolicy, question: Question, loads: Fleet, turn: int, seed: int) -> float:
    rules = Rules(Slo(10.0, 0.05), BLOCK_SIZE, 32)
    chance = random.Random(seed)
    begin_s = time.perf_counter()
    route = policy(question, loads, rules, turn, chance)
    duration_s = time.perf_counter() - begin_s
    assert route is not None
    return duration_s


if __name__ == "__main__":
    run_program("routing_speed", RoutingOptions, __doc__, measure)
