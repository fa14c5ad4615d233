"""What of the waiting prompts a simulated worker's next step reads, by the live policies."""

from collections.abc import Iterable, Sequence

from diptych.policy.batching import plan_chunks, prefill_budget_tokens
from diptych.sim.answers import AnswerBatch
from diptych.sim.plan import WorkerPlan
from diptych.sim.sequence import Prompt
from diptych.worker.pace import Pace, Unread

Chunk = tuple[Prompt, int]
"""So many tokens of this prompt."""


def choose_chunks(prompts: Sequence[Prompt], batch: AnswerBatch, plan: WorkerPlan, pace: Pace | None) -> list[Chunk]:
    """Return how many tokens of which prompts to read, first come, first served; `pace`: of the batching `paced`."""
    if not prompts:
        return []
    if plan.batching == "prefill-first":
        return _whole_prompts(prompts, plan.chunk_tokens)
    if pace is not None:
        unread = [Unread(prompt.since_s, prompt.num_left, prompt.num_read) for prompt in prompts]
        sizes = pace.chunks(list(batch.members.values()), unread)
    else:
        num_rows = len(batch)
        budget = prefill_budget_tokens(num_rows, plan.chunk_tokens, plan.decode_chunk_tokens)
        if num_rows:
            budget *= plan.pipeline_stages  # of each of the batches that go around
        # More prompts than tokens are never looked at: each takes one at least.
        sizes = plan_chunks([prompt.num_left for prompt in _first(prompts, budget)], budget)
    return list(zip(prompts, sizes, strict=False))


def _first(prompts: Iterable[Prompt], budget_tokens: int) -> list[Prompt]:
    """Return the prompts that a budget may reach: a queue may be much longer than that."""
    reached: list[Prompt] = []
    for prompt in prompts:
        reached.append(prompt)
        budget_tokens -= prompt.num_left
        if budget_tokens <= 0:
            break
    return reached


def _whole_prompts(prompts: Iterable[Prompt], most_tokens: int) -> list[Chunk]:
    whole: list[Chunk] = []
    for prompt in prompts:
        if whole and prompt.num_left > most_tokens:
            break
        whole.append((prompt, prompt.num_left))
        most_tokens -= prompt.num_left
    return whole
