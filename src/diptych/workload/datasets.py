"""The workloads that DistServe was measured with: lengths as of its datasets, and the limits of its paper.

Lengths are lognormal, cut at what OPT's context holds, with the published means (755.5 tokens in and 200.3 out for
ShareGPT, 171.3 and 98.2 for HumanEval, 1,738.3 and 90.7 for LongBench); spreads are ours. That is all that is known of
a dataset here: no texts, no shared prefixes.

See: Zhong et al., DistServe, OSDI 2024, section 6.1 and its table of workloads.
"""

from diptych.core.errors import ConfigError
from diptych.core.slo import Slo
from diptych.workload.lengths import Lengths
from diptych.workload.named import Part, Workload

_SHAREGPT = Part(Lengths(618, 0.7, 4, 1_950), Lengths(88, 1.5, 2, 1_000))
_HUMANEVAL = Part(Lengths(156, 0.43, 50, 500), Lengths(76, 0.74, 10, 400))
_LONGBENCH = Part(Lengths(1_910, 0.3, 400, 1_950), Lengths(70, 0.75, 10, 400))

DATASETS = {
    workload.name: workload
    for workload in (
        Workload("chat", "as ShareGPT: 756 tokens in, 200 out", 0.4, ((1.0, _SHAREGPT),)),
        Workload("code", "as HumanEval: 171 in, 98 out", 0.125, ((1.0, _HUMANEVAL),)),
        Workload("summarise", "as LongBench, cut to OPT's context: 1,738 in, 91 out", 15.0, ((1.0, _LONGBENCH),)),
        Workload("mixed", "four chats to one summary", 4.0, ((0.8, _SHAREGPT), (0.2, _LONGBENCH))),
    )
}

PAPER_SLOS = {
    ("chat", "opt-13b"): Slo(0.25, 0.1),
    ("chat", "opt-66b"): Slo(0.4, 0.1),
    ("chat", "opt-175b"): Slo(4.0, 0.2),
    ("code", "opt-66b"): Slo(0.125, 0.2),
    ("summarise", "opt-66b"): Slo(15.0, 0.15),
}
"""Of workload and model. One version of the paper has 2.5 s and 0.15 s for chats of OPT-66B."""
USUAL_TPOT_S = {"chat": 0.1, "code": 0.2, "summarise": 0.15, "mixed": 0.1}


def find_dataset(name: str) -> Workload:
    """Return a workload by name.

    Raises: ConfigError naming those that there are.
    """
    workload = DATASETS.get(name)
    if workload is None:
        raise ConfigError(f"workload {name!r} is not known; known are {', '.join(DATASETS)}")
    return workload


def usual_slo(workload: Workload, model: str) -> Slo:
    """Return the paper's limits for this model and workload, or of the workload alone where it has none."""
    return PAPER_SLOS.get((workload.name, model), Slo(workload.slo_ttft_s, USUAL_TPOT_S[workload.name]))
