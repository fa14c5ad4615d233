import os
import threading
from pathlib import Path

import pytest

from diptych.core.errors import ModelError
from diptych.models.cache import Manifest, ModelCache, default_cache_dir
from diptych.models.facts import ModelFacts
from diptych.models.progress import SilentProgress

MANIFEST = Manifest(name="m", model="m", source="here", facts=ModelFacts(context_length=8))


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("DIPTYCH_CACHE", raising=False)
    assert default_cache_dir() == tmp_path / ".cache" / "diptych"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_cache_dir() == tmp_path / ".cache" / "diptych"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_cache_dir() == Path("/xdg/diptych")
    monkeypatch.setenv("DIPTYCH_CACHE", "~/own")
    assert default_cache_dir() == tmp_path / "own"


def test_a_published_model_is_found_and_replaced(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    assert cache.try_entry("k") is None
    assert cache.entries() == []
    for content in ("one", "two"):
        with cache.lock("k", SilentProgress(), wait_s=1):
            (cache.start_work("k", keeps_partial=False) / "weights").write_text(content)
            entry = cache.publish("k", MANIFEST)
        assert (entry.path / "weights").read_text() == content
    assert cache.entries() == [entry]
    assert [path.name for path in (tmp_path / "models").iterdir() if path.is_dir()] == ["k"]


@pytest.mark.parametrize("text", [b"", b"{}", MANIFEST.name.encode(), b'{"format": 0}'])
def test_a_folder_without_a_good_manifest_is_no_model(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "models" / "k").mkdir(parents=True)
    (tmp_path / "models" / "k" / "diptych.json").write_bytes(text)
    assert ModelCache(tmp_path).try_entry("k") is None


def test_partial_work_is_kept_only_on_demand(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    with cache.lock("k", SilentProgress(), wait_s=1):
        (cache.start_work("k", keeps_partial=True) / "part").touch()
        assert (cache.start_work("k", keeps_partial=True) / "part").exists()
        assert not (cache.start_work("k", keeps_partial=False) / "part").exists()


def test_waiting_for_a_lock_has_a_deadline_and_names_the_holder(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    with cache.lock("k", SilentProgress(), wait_s=1):
        error = rf"process {os.getpid()} has been preparing k"
        with pytest.raises(ModelError, match=error), cache.lock("k", SilentProgress(), wait_s=0.05):
            pass
        with cache.lock("other", SilentProgress(), wait_s=0.05):
            pass


def test_a_lock_passes_to_who_waits(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    order: list[str] = []

    def wait_and_enter() -> None:
        with cache.lock("k", SilentProgress(), wait_s=30):
            order.append("second")

    with cache.lock("k", SilentProgress(), wait_s=1):
        waiter = threading.Thread(target=wait_and_enter)
        waiter.start()
        order.append("first")
    waiter.join(30)
    assert order == ["first", "second"]


def test_only_abandoned_work_is_swept(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    folders = {}
    for key in ("held", "fresh", "abandoned-1.5"):
        with cache.lock(key, SilentProgress(), wait_s=1):
            folders[key] = cache.start_work(key, keeps_partial=True)
    for key in ("held", "abandoned-1.5"):
        os.utime(folders[key], (0, 0))
    with cache.lock("held", SilentProgress(), wait_s=1):
        cache.sweep()
    assert [key for key, folder in folders.items() if folder.exists()] == ["held", "fresh"]
