"""Where a client of a server under measurement runs."""

import os

import pytest

from harness.serving import client_cores, pinned_to


def test_client_keeps_off_decode_cores_where_it_can() -> None:
    def status(**cores: list[int]) -> dict[str, object]:
        return {
            "workers": {f"{role}-0": {"role": role, "status": {"cores": numbers}} for role, numbers in cores.items()}
        }

    allowed = sorted(os.sched_getaffinity(0))
    assert client_cores(status(prefill=allowed[:1], decode=allowed[1:])) == allowed[:1]
    assert client_cores(status(decode=allowed)) == allowed[:1]


def test_pinning_is_undone() -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(RuntimeError), pinned_to([min(before)]):
        assert os.sched_getaffinity(0) == {min(before)}
        raise RuntimeError
    assert os.sched_getaffinity(0) == before
