"""How the room on disk is shared out, and what is wrong with a folder."""

from pathlib import Path

import pytest

from diptych.core.config import ServeConfig
from diptych.core.errors import ConfigError
from diptych.launch.disk_kv import plan_disk_kv
from diptych.launch.local import roles_of


def test_by_default_nothing_goes_to_disk() -> None:
    config = ServeConfig()
    assert plan_disk_kv(config, roles_of(config)) is None


@pytest.mark.parametrize(("adaptive", "num_sharers"), [(True, 3), (False, 2)])
def test_all_who_write_answers_share_the_room(tmp_path: Path, adaptive: bool, num_sharers: int) -> None:
    config = ServeConfig(decode=2, adaptive=adaptive, disk_kv_bytes="6GB", disk_kv_dir=tmp_path / "new")  # type: ignore[arg-type]
    plan = plan_disk_kv(config, roles_of(config))
    assert plan is not None
    assert plan.order.num_sharers == num_sharers
    assert plan.order.limit_bytes == 6 * 10**9 // num_sharers
    assert plan.order.folder == str(tmp_path / "new")
    assert "6.00 GB" in plan.description
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_used_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = ServeConfig(disk_kv_bytes=10**9, disk_kv_dir=tmp_path / "file" / "kv")
    with pytest.raises(ConfigError, match="--disk-kv-dir: cannot make the folder"):
        plan_disk_kv(config, roles_of(config))
