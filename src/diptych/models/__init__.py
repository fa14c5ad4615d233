"""Names, files and repositories of models to folders that a worker can load. Runs before any process is started.

A request never comes here. Importing this package loads neither openvino nor huggingface_hub: both run in programs of
their own (`convert`, `hub_program`), so that their memory, their noise and their crashes stay there.
"""

from diptych.models.cache import default_cache_dir
from diptych.models.catalog import CATALOG, DEFAULT_MODEL, CatalogModel
from diptych.models.description import ModelDescription, ModelRow, describe, list_models
from diptych.models.folder import ModelFolder
from diptych.models.progress import PlainProgress, Progress, SilentProgress, TerminalProgress, stderr_progress
from diptych.models.resolution import resolve

__all__ = [
    "CATALOG",
    "DEFAULT_MODEL",
    "CatalogModel",
    "ModelDescription",
    "ModelFolder",
    "ModelRow",
    "PlainProgress",
    "Progress",
    "SilentProgress",
    "TerminalProgress",
    "default_cache_dir",
    "describe",
    "list_models",
    "resolve",
    "stderr_progress",
]
