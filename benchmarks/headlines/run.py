"""Program: `python benchmarks/headlines/run.py NAME [flags]` with one of distserve, attainment, mooncake, dynamo."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # where `headlines` and `harness` are found, whoever starts this
    from headlines.command import main

    sys.exit(main(sys.argv[1:]))
