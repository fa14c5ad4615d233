"""What must be the same for KV that one server has stored to be read by another: a name of it all.

Shape and model alone do not do. With another number of threads, another processor or another version of the engine the
same prompt gives KV that differs in its last bits, and answers with it; and where answers must not depend on what is
cached (`--exact`), blocks that decode has written must not be found. On disk the key is a folder's name, in a shared
store the first part of every block's.
"""

import hashlib
import re
from collections.abc import Mapping

from diptych.tiers.block_file import FORMAT_VERSION

_KEY = re.compile(r"kv\d+-[0-9a-f]{16}-[0-9a-f]{16}")


def kv_key(layout_fingerprint: str, facts: Mapping[str, str]) -> str:
    """Return the name of a layout and all other `facts` on which KV depends."""
    text = repr(sorted(facts.items())).encode("utf-8", "surrogatepass")
    return f"kv{FORMAT_VERSION}-{layout_fingerprint}-{hashlib.blake2b(text, digest_size=8).hexdigest()}"


def is_kv_key(name: str) -> bool:
    """Tell whether a name is one of ours: of the folders on disk nothing else is ever touched."""
    return _KEY.fullmatch(name) is not None
