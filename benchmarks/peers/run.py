"""Program: `python benchmarks/peers/run.py --help` says what it does."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # where `peers` and `harness` are found, whoever starts this
    from peers.command import main

    sys.exit(main())
