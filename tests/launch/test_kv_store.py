"""Which store the workers share KV by, how it is written, and that machines that join are told."""

import importlib.util

import pytest

from diptych.core.config import ServeConfig
from diptych.core.control import StoreOrder
from diptych.core.errors import ConfigError
from diptych.core.node_config import node_config, shared_settings
from diptych.launch import kv_store
from diptych.launch.kv_store import plan_kv_store

URL = "mooncake://10.0.0.1:50051"


def test_by_default_nothing_is_shared() -> None:
    assert plan_kv_store(ServeConfig()) is None


def test_workers_are_told_the_master_and_under_which_address_they_are() -> None:
    assert plan_kv_store(ServeConfig(kv_store=URL)) == StoreOrder(master="10.0.0.1:50051", host="")
    there = plan_kv_store(ServeConfig(kv_store="mooncake://[fd00::1]:50051", transfer_host="fd00::2"))
    assert there == StoreOrder(master="[fd00::1]:50051", host="fd00::2")


def test_machines_that_join_share_the_routers_store() -> None:
    told = shared_settings(ServeConfig(kv_store=URL))
    assert node_config(told, 1024, {"prefill": 1, "kv_store": None}).kv_store == URL


@pytest.mark.parametrize("text", ["10.0.0.1:50051", "redis://10.0.0.1:50051", "mooncake://", "mooncake://10.0.0.1", ""])
def test_what_is_no_store_is_told_at_the_start(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--kv-store: .*is not .*HOST:PORT"):
        plan_kv_store(ServeConfig(kv_store=text))


def test_a_library_that_is_missing_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        kv_store, "find_spec", lambda name: None if name == "mooncake" else importlib.util.find_spec(name)
    )
    with pytest.raises(ConfigError, match=r"--kv-store: .*pip install 'diptych\[mooncake\]'"):
        plan_kv_store(ServeConfig(kv_store=URL))
