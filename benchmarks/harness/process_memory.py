"""Memory of a process and all that it started, shared pages counted once."""

import os
from pathlib import Path

PROC = Path("/proc")


def tree_of(pid: int) -> list[int]:
    """Return `pid` and its descendants that live now."""
    children: dict[int, list[int]] = {}
    for directory in PROC.glob("[0-9]*"):
        parent = _parent_of(int(directory.name))
        if parent is not None:
            children.setdefault(parent, []).append(int(directory.name))
    found, queue = [], [pid]
    while queue:
        found.append(queue.pop())
        queue += children.get(found[-1], [])
    return found


def _parent_of(pid: int) -> int | None:
    try:
        text = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None  # ended meanwhile
    # The second field is the program's name in brackets, which may hold spaces and brackets.
    return int(text.rpartition(")")[2].split()[1])


def private_bytes(pid: int) -> int:
    """Return the process's memory that it shares with nobody.

    Raises: OSError if it has ended.
    """
    fields = (PROC / str(pid) / "statm").read_text(encoding="ascii").split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")


def proportional_bytes(pid: int) -> int:
    """Return the process's memory, of pages that n processes share a n-th part (PSS); 0 if it has ended."""
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
