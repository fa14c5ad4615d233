"""Diptych serves large language models with prefill and decode on separate workers.

import diptych

with diptych.serve(diptych.ServeConfig(prefill=1, decode=1, port=0)) as server:
    print(server.url)
"""

from typing import TYPE_CHECKING

from diptych.core.version import __version__ as __version__

if TYPE_CHECKING:
    from diptych.core.config import ServeConfig
    from diptych.core.errors import ConfigError, DiptychError, LaunchError, ModelError
    from diptych.launch.server import Server, serve

__all__ = ["ConfigError", "DiptychError", "LaunchError", "ModelError", "ServeConfig", "Server", "serve"]

_HOMES = {"ServeConfig": "diptych.core.config", "Server": "diptych.launch.server", "serve": "diptych.launch.server"}


def __getattr__(name: str) -> object:
    # Looked up when asked for: every worker process imports this package and needs none of it.
    if name not in __all__:
        raise AttributeError(f"module 'diptych' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415

    return getattr(import_module(_HOMES.get(name, "diptych.core.errors")), name)
