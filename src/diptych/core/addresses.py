"""Where inboxes are: in a server's private directory, known to all of a cluster by their machine's name.

On one machine a worker's address is its socket, `ipc:///run/user/0/diptych/server-x/decode-0-1`. In a cluster it is
`node://NODE/decode-0-1`: every process knows its own machine's directory, and who passes on to other machines.
"""

from diptych.core.ids import FIRST_ROUTER, NodeId, RouterId, WorkerId

IPC_SCHEME = "ipc://"
NODE_SCHEME = "node://"
HEAD_NODE = NodeId("head")
"""The machine with the routers."""
BORDER_NAME = "border"
"""The inbox of who passes letters on to other machines: the first router or, on those, who passes on to it."""


def node_worker_id(node: NodeId, worker_id: WorkerId) -> WorkerId:
    """Return what a worker of a machine that has joined is called: such as `rack2.decode-0`."""
    return WorkerId(f"{node}.{worker_id}")


def router_name(router: RouterId) -> str:
    """Return the name of a router's inbox or, on other machines, of the inbox of who passes on to it."""
    return _numbered("router", router)


def border_name(router: RouterId) -> str:
    """Return the name of the inbox of a router for letters to other machines; nobody writes to any but the first's."""
    return _numbered(BORDER_NAME, router)


def _numbered(name: str, router: RouterId) -> str:
    return name if router == FIRST_ROUTER else f"{name}-{router}"


def local_name(worker_id: WorkerId) -> str:
    """Return what a worker is called on its own machine."""
    return worker_id.rpartition(".")[2]


def inbox_name(worker_id: WorkerId, incarnation: int) -> str:
    """Return what the inbox of this life of a worker is called in its machine's directory."""
    return f"{local_name(worker_id)}-{incarnation}"


def public_endpoint(endpoint: str, node: NodeId) -> str:
    """Return the address under which others know an inbox of the machine `node`; the same if there is no cluster."""
    return f"{NODE_SCHEME}{node}/{endpoint.rpartition('/')[2]}" if node else endpoint


def split_node_endpoint(endpoint: str) -> tuple[NodeId, str] | None:
    """Return the machine and the inbox's name of an address in a cluster; None if it is none."""
    node, slash, name = endpoint.removeprefix(NODE_SCHEME).partition("/")
    if not endpoint.startswith(NODE_SCHEME) or not node or not slash or not name or "/" in name:
        return None
    return NodeId(node), name
