"""A Ray cluster of several nodes on this machine: a program that prints its address, and ends when its stdin does.

A program of its own, since Ray's threads, signal handlers and warnings are nothing for a test runner.
"""

import sys

from ray.cluster_utils import Cluster


def main() -> None:
    """Start a head that runs nothing, and a node with room for one agent for each name on the command line."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = {name: cluster.add_node(num_cpus=1, resources={name: 1}) for name in sys.argv[1:]}
    print(cluster.address, flush=True)
    for line in sys.stdin:
        cluster.remove_node(nodes.pop(line.strip()))
        print("removed", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
