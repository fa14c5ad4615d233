"""Which headline to simulate: `run.py NAME [flags]`; `run.py NAME --help` says what it does."""

from collections.abc import Sequence

from harness.program import run_program
from headlines import attainment, distserve, dynamo, mooncake, report

NAMES = ("distserve", "attainment", "mooncake", "dynamo", "report")
EXIT_USAGE = 2


def main(arguments: Sequence[str]) -> int:
    """Run one program; return the exit status."""
    name, flags = (arguments[0], arguments[1:]) if arguments else ("", [])
    match name:
        case "distserve":
            run_program(name, distserve.DistServeOptions, distserve.__doc__, distserve.measure, flags)
        case "attainment":
            run_program(name, attainment.AttainmentOptions, attainment.__doc__, attainment.measure, flags)
        case "mooncake":
            run_program(name, mooncake.MooncakeOptions, mooncake.__doc__, mooncake.measure, flags)
        case "dynamo":
            run_program(name, dynamo.DynamoOptions, dynamo.__doc__, dynamo.measure, flags)
        case "report":
            return report.write(flags)
        case _:
            print(f"usage: run.py NAME [flags], with NAME one of {', '.join(NAMES)}; `run.py NAME --help` tells more")
            return 0 if name in {"--help", "-h"} else EXIT_USAGE
    return 0
