"""What must be the same for KV that one server has written to be read by another: the name of a folder.

Shape and model alone do not do. With another number of threads, another processor or another version of the engine the
same prompt gives KV that differs in its last bits, and answers with it; and where answers must not depend on what is
cached (`--exact`), blocks that decode has written must not be found.
"""

import hashlib
import re
from collections.abc import Mapping

from diptych.tiers.block_file import FORMAT_VERSION

_KEY = re.compile(r"kv\d+-[0-9a-f]{16}-[0-9a-f]{16}")


def disk_key(layout_fingerprint: str, facts: Mapping[str, str]) -> str:
    """Return the folder's name for a layout and all other `facts` on which KV depends."""
    text = repr(sorted(facts.items())).encode("utf-8", "surrogatepass")
    return f"kv{FORMAT_VERSION}-{layout_fingerprint}-{hashlib.blake2b(text, digest_size=8).hexdigest()}"


def is_disk_key(name: str) -> bool:
    """Tell whether a folder is one of ours: nothing else below the root is ever touched."""
    return _KEY.fullmatch(name) is not None
