"""The node's shared memory: one and the same in every process that inherits it, and gone without a trace."""

import mmap
import os
import resource
import subprocess
import sys

import pytest

from diptych.core.errors import LaunchError
from diptych.transfer import segment
from diptych.transfer.segment import Segment, available_memory_bytes

NUM_BYTES = 3 * mmap.PAGESIZE
CHILD = """
import sys
from diptych.transfer.segment import Segment
segment = Segment(int(sys.argv[1]))
segment.populate()
view = segment.view(5, 11)
assert bytes(view) == b"from parent", bytes(view)
segment.view(segment.num_bytes - 10, 10)[:] = b"from child"
"""


def test_two_processes_see_the_same_bytes() -> None:
    ours, descriptor = Segment.create(NUM_BYTES)
    ours.view(5, 11)[:] = b"from parent"
    subprocess.run([sys.executable, "-c", CHILD, str(descriptor)], pass_fds=[descriptor], check=True, timeout=60)

    assert bytes(ours.view(NUM_BYTES - 10, 10)) == b"from child"
    os.close(descriptor)
    assert bytes(ours.view(5, 11)) == b"from parent", "the mapping outlives the descriptor"
    ours.close()


def test_it_has_no_name_and_is_not_inherited_by_accident() -> None:
    ours, descriptor = Segment.create(NUM_BYTES)
    try:
        assert os.readlink(f"/proc/self/fd/{descriptor}").startswith("/memfd:")  # noqa: PTH115
        assert not os.get_inheritable(descriptor)
    finally:
        os.close(descriptor)
        ours.close()


def test_it_takes_its_memory_when_asked_to() -> None:
    ours, descriptor = Segment.create(64 * mmap.PAGESIZE)
    try:
        assert os.fstat(descriptor).st_blocks == 0
        Segment.reserve(descriptor, ours.num_bytes)
        assert os.fstat(descriptor).st_blocks * 512 == ours.num_bytes
        assert bytes(ours.view(0, 100)) == bytes(100)
    finally:
        os.close(descriptor)
        ours.close()


def test_more_than_there_is_is_refused_with_the_flag_to_change() -> None:
    num_open = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(LaunchError, match="lower --kv-bytes"):
        Segment.create(2**60)
    assert len(os.listdir("/proc/self/fd")) == num_open  # noqa: PTH208


def test_memory_that_is_not_to_be_had_is_an_error_of_one_line() -> None:
    ours, descriptor = Segment.create(NUM_BYTES)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (NUM_BYTES, limits[1]))  # the kernel then refuses larger files
        with pytest.raises(LaunchError, match=r"cannot reserve .* lower --kv-bytes"):
            Segment.reserve(descriptor, 2 * NUM_BYTES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        os.close(descriptor)
        ours.close()


def test_closing_while_a_view_is_left_does_no_harm() -> None:
    ours, descriptor = Segment.create(NUM_BYTES)
    view = ours.view(0, 4)
    ours.close()
    view[:] = b"used"
    os.close(descriptor)
    view.release()
    ours.close()


def test_the_machine_says_how_much_memory_is_left() -> None:
    assert 10**6 < available_memory_bytes() < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_limit_of_the_control_group_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "available_memory_bytes", lambda: NUM_BYTES - 1)
    with pytest.raises(LaunchError):
        Segment.create(NUM_BYTES)
