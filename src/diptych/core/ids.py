"""Nominal ids: a string or number that names one thing and nothing else."""

from typing import NewType

RequestId = NewType("RequestId", str)
"""Names a request for as long as the server lives; unique over all frontends."""

WorkerId = NewType("WorkerId", str)
"""Names a worker's place in the cluster, such as `decode-0`; a replacement has the same id, another `incarnation`."""

RouterId = NewType("RouterId", int)
"""Names the place of a frontend's router, from 0; a frontend that takes a dead one's place has the same."""
FIRST_ROUTER = RouterId(0)

NodeId = NewType("NodeId", str)
"""Names a machine of a cluster; empty where there is only one."""
NO_NODE = NodeId("")

BlockId = NewType("BlockId", int)
"""Index of a KV block in the node's segment; valid in every worker of the node."""

BlockHash = NewType("BlockHash", bytes)
"""16 bytes that name the tokens of a block and of all blocks before it (kv/hashing.py)."""
