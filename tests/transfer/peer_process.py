"""A machine in a process of its own, which can be killed: sends blocks without end, or takes what it is sent.

python -m tests.transfer.peer_process send WAY ENDPOINT [HOST]   pushes blocks 0 to 29 again and again
python -m tests.transfer.peer_process take WAY                   grants all its blocks to `sender`, prints its endpoint
"""

import sys
import threading

from tests.transfer.machines import Machine, outcome

EPOCH = 1
NUM_BLOCKS = 30


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
