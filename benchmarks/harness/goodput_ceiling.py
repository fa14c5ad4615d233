"""The most that a machine's cores could carry of a workload, by the step times that `diptych calibrate` has measured.

Every step is as fast as the bare engine's, no core is ever idle, client and frontend cost nothing, requests come evenly
and each is the mean one, prefixes are always cached, and prompts may wait: only the limit of time per token holds. A
real system is below that, by its own work and by the unevenness of the load; what is above it no scheduler brings.
"""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np

from diptych.core.cost_model import StepWork
from diptych.hardware.profile import Profile
from diptych.workload.named import WORKLOADS
from diptych.workload.session import Session

NUM_SESSIONS = 1_000
MOST_ROWS = 64
"""As many answers as a worker writes at a time."""
CHUNKS = (0, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Tokens of prompts in a step."""
NUM_WEIGHTS = 1_001


class MeanRequest(NamedTuple):
    """A workload's requests, in one."""

    num_prompt_tokens: float
    """That must be read: of nobody else's prompt, and of no earlier turn's."""
    num_past: float
    """Before those."""
    num_output_tokens: float

    @property
    def num_context_tokens(self) -> float:
        """Of a running answer, on average."""
        return self.num_past + self.num_prompt_tokens + self.num_output_tokens / 2


def mean_request(workload: str) -> MeanRequest:
    """Return the mean of a named workload's first requests."""
    requests = [
        one for session in islice(WORKLOADS[workload].sessions(1.0, 0), NUM_SESSIONS) for one in _requests_of(session)
    ]
    return MeanRequest(*(sum(values) / len(requests) for values in zip(*requests, strict=True)))


def _requests_of(session: Session) -> Iterator[MeanRequest]:
    num_past = 0
    for turn in session.turns:
        # What all sessions begin with has a key without the session's own number.
        num_shared = sum(segment.num_tokens for segment in turn.added if len(segment.key) == 1)
        num_new = turn.num_added_tokens - num_shared
        yield MeanRequest(num_new, num_past + num_shared, turn.num_output_tokens)
        num_past += turn.num_added_tokens + turn.num_output_tokens


def ceiling_per_s(profile: Profile, workload: str, tpot_s: float) -> float:
    """Return the most requests a second on all cores that were calibrated; 0 if not even one answer keeps the limit.

    A step on so many cores brings a share `read` of a request's prompt and a share `written` of its answer. Of all ways
    to divide the cores' time among all kinds of steps, the best one brings as much of both as (linear programming,
    duality) the least, over all weights of the two, of what the best kind of step brings weighted.
    """
    steps = np.array(list(_steps(profile, mean_request(workload), tpot_s)))
    if not steps[:, 1].any():
        return 0.0
    read_per_s, written_per_s = steps.T
    weights = np.linspace(0, 1, NUM_WEIGHTS)[:, np.newaxis]
    core_rate_per_s = float((weights * read_per_s + (1 - weights) * written_per_s).max(axis=1).min())
    return core_rate_per_s * max(worker.num_cores for worker in profile.workers)


def _steps(profile: Profile, request: MeanRequest, tpot_s: float) -> Iterator[tuple[float, float]]:
    """Yield what each kind of step reads and writes in a second of a core, in requests."""
    for worker in profile.workers:
        for num_rows in range(MOST_ROWS + 1):
            answers = StepWork.of_answers(num_rows, round(num_rows * request.num_context_tokens))
            for num_tokens in CHUNKS:
                num_past = round(request.num_past + max(request.num_prompt_tokens - num_tokens, 0) / 2)
                step_s = worker.costs.work_s(answers.plus(num_tokens, num_past) if num_tokens else answers)
                if not step_s or (num_rows and step_s > tpot_s):
                    continue
                core_s = step_s * worker.num_cores
                yield num_tokens / request.num_prompt_tokens / core_s, num_rows / request.num_output_tokens / core_s
