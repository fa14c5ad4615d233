"""Who may be written to on a stranger's word: lives whose inboxes were there, or of which the launcher has told."""

from pathlib import Path

from diptych.core.ids import WorkerId
from diptych.core.messages import PeerAddress, Role
from diptych.wire.neighbours import Neighbours

DECODE, PREFILL = WorkerId("decode-0"), WorkerId("prefill-0")


def neighbours(folder: Path, lives: dict[WorkerId, int] | None = None) -> Neighbours:
    return Neighbours(f"ipc://{folder}/decode-0-2", {DECODE: Role.DECODE, PREFILL: Role.PREFILL}, lives)


def test_an_inbox_that_was_seen_stays_known(tmp_path: Path) -> None:
    known = neighbours(tmp_path)
    for name in ("prefill-0-7", "prefill-9-1", "router", "prefill-0-x", "prefill-0-8"):
        (tmp_path / name).touch()
    known.look_around()
    for path in tmp_path.iterdir():
        path.unlink()
    assert known.has_inbox(PREFILL, 7)
    assert known.try_find(PeerAddress(PREFILL, f"ipc://{tmp_path}/prefill-0-7", 7)) is Role.PREFILL
    assert known.try_find(PeerAddress(PREFILL, f"ipc://{tmp_path}/elsewhere", 7)) is None
    assert not known.has_inbox(PREFILL, 9)
    assert not known.has_inbox(WorkerId("prefill-9"), 1)


def test_what_the_launcher_tells_needs_no_inbox(tmp_path: Path) -> None:
    known = neighbours(tmp_path, {PREFILL: 1})
    assert known.has_inbox(PREFILL, 1)
    assert not known.has_inbox(PREFILL, 2)


def test_a_directory_that_is_gone_tells_nothing(tmp_path: Path) -> None:
    known = neighbours(tmp_path / "absent")
    known.look_around()
    assert not known.has_inbox(PREFILL, 1)
