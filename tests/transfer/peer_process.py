"""A machine in a process of its own, which can be killed: sends blocks without end, or takes what it is sent.

python -m tests.transfer.peer_process send WAY ENDPOINT [HOST]   pushes blocks 0 to 29 again and again
python -m tests.transfer.peer_process take WAY                   grants all its blocks to `sender`, prints its endpoint
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from tests.transfer.machines import Machine, outcome

EPOCH = 1
NUM_BLOCKS = 30


@contextmanager
def peer(*arguments: str, prefix: Sequence[str] = ()) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a peer; return it with its first word."""
    process = subprocess.Popen(
        [*prefix, sys.executable, "-m", "tests.transfer.peer_process", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,  # its carriers too are to stand still
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def main() -> None:
    role, way, *rest = sys.argv[1:]
    host = rest[1] if len(rest) > 1 else "127.0.0.1"
    with Machine("sender" if role == "send" else "owner", NUM_BLOCKS, ways=[way], host=host) as machine:
        if role == "send":
            link = machine.exchange.link(rest[0])
            print("ready", flush=True)
            while True:
                assert outcome(link.push(EPOCH, machine.all_pairs())) is None
        machine.grants.open(EPOCH, ("sender", 1), [there for _, there in machine.all_pairs()], [])
        print(machine.exchange.receiver.endpoint, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
