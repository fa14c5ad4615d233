"""Run every benchmark, one after the other, and write results/latest/README.md: target, measured, verdict.

`--report-only` writes the table anew from the results that are there.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from diptych.core.errors import BenchError, DiptychError
from harness.report import write_report
from harness.result import RESULTS_DIR

FOLDER = Path(__file__).parent
PROGRAMS = (
    "bare_engine",
    "engine_speed",
    "prefill_speed",
    "decode_overhead",
    "handoff_latency",
    "startup_and_memory",
    "interference",
    "frontend_speed",
    "routing_speed",
    "several_routers",
    "structured_output",
    "prefix_index",
    "resume",
    "multi_turn_cache",
    "transfer",
    "remote_handover",
    "distant_handover",
    "copy_cost",
    "disk_cost",
)
TIMEOUT_S = 3_600.0
"""Of one benchmark."""


def main() -> int:
    """Run what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="other flags go to each benchmark",
    )
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, default=PROGRAMS, help="which ones [all]")
    parser.add_argument("--report-only", action="store_true", help="run none")
    parser.add_argument("--output", type=Path, default=RESULTS_DIR, help=f"folder for results [{RESULTS_DIR}]")
    options, passed_on = parser.parse_known_args()
    names = [] if options.report_only else options.only
    try:
        failed = [name for name in names if not _run(name, [*passed_on, "--output", str(options.output)])]
        path = write_report(PROGRAMS, options.output)
    except DiptychError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"report: {path}")
    if failed:
        print(
            f"error: these failed, their older results are shown if there are any: {', '.join(failed)}", file=sys.stderr
        )
    return 1 if failed else 0


def _run(name: str, arguments: list[str]) -> bool:
    """Run a benchmark to its end; tell whether it left a result."""
    print(f"\n{name}", flush=True)
    command = [sys.executable, str(FOLDER / f"{name}.py"), *arguments]
    try:
        return subprocess.run(command, timeout=TIMEOUT_S, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        raise BenchError(f"{name} was not done within {TIMEOUT_S:.0f} s; ask for fewer --pairs") from None


if __name__ == "__main__":
    sys.exit(main())
