"""Machines that are some way apart, with a wire that loses packets: blocks arrive byte for byte all the same."""

import pytest
from tests.transfer.machines import Machine, wait_for
from tests.transfer.peer_process import EPOCH, NUM_BLOCKS, peer

from diptych.core.errors import BenchError
from harness.wire import Wire


@pytest.mark.slow
@pytest.mark.parametrize("way", ["tcp", "mooncake", "nixl"])
def test_blocks_arrive_over_a_long_wire_that_loses_some(
    way: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UCX_TLS", "tcp")
    try:
        wire = Wire(delay_s=0.01, bytes_per_s=1.25e8, loss=0.01)
    except BenchError as error:
        pytest.skip(f"no wire can be made here: {error}")
    with (
        wire,
        Machine("sender", NUM_BLOCKS) as like_sender,
        Machine("owner", NUM_BLOCKS, ways=[way], host=wire.near) as owner,
    ):
        owner.grants.open(EPOCH, ("sender", 1), range(NUM_BLOCKS), [])
        expected = [like_sender.block(number) for number in range(NUM_BLOCKS)]
        with peer("send", way, owner.exchange.receiver.endpoint, wire.far, prefix=wire.prefix) as (_, word):
            assert word == "ready"
            assert wait_for(lambda: [owner.block(number) for number in range(NUM_BLOCKS)] == expected)
            assert "inline" not in capfd.readouterr().err, "they come by the library"
