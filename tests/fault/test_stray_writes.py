"""Somebody who has no business there writes into the segment: found before anything is computed from it."""

import subprocess
import sys

import pytest
from tests.live_server import LiveServer, Serving
from tests.modeled_answers import expected_text, make_prompt

from diptych.frontend.text.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

STRAY_WRITER = """
import mmap, os, sys
from diptych.kv.header import SegmentHeader, header_bytes

folder = f"/proc/{sys.argv[1]}/fd"
name = next(name for name in os.listdir(folder) if os.readlink(f"{folder}/{name}").startswith("/memfd:diptych-kv"))
descriptor = os.open(f"{folder}/{name}", os.O_RDWR)
memory = memoryview(mmap.mmap(descriptor, os.fstat(descriptor).st_size))
header = SegmentHeader.open(memory)
records = [record for record in header.committed(range(header.num_blocks)) if record and record.block_hash]
newest = max(record.epoch for record in records)
begin = header_bytes(header.num_blocks, header.shape.extent_blocks)
for record in records:
    if record.epoch == newest:
        memory[begin + (record.block_id + 1) * header.shape.block_bytes - 8] ^= 1
        print(record.block_id)
"""
"""Maps the segment of a process and flips a bit in each full block of the newest reservation."""


def write_astray(server: LiveServer) -> set[int]:
    """Have a process of its own damage the blocks that were reserved last; return which."""
    command = [sys.executable, "-c", STRAY_WRITER, str(server.worker("decode-0")["pid"])]
    damaged = {int(line) for line in subprocess.check_output(command, text=True, timeout=60).split()}
    assert damaged
    return damaged


def test_with_checksums_it_ends_those_who_would_read_it(serving: Serving, tokenizer: Tokenizer) -> None:
    prompt, calm, running = make_prompt(100, 1), make_prompt(150, 2), make_prompt(120, 3)
    with serving(engine="modeled", modeled_time_scale=0.1, kv_checksums=True) as server:
        server.complete(prompt)
        damaged = write_astray(server)
        with server.stream(calm, max_tokens=600) as bystander:
            bystander.read(1)
            response = server.post(prompt + make_prompt(20, 9))  # so long that the prefill worker is to read on
            assert response.status_code == 500, response.text
            error = response.json()["error"]
            assert error["code"] == "internal_error"
            assert int(error["message"].removeprefix("KV block ").split()[0]) in damaged
            again = server.complete(prompt)
            assert (again.text, again.num_cached_tokens) == (expected_text(tokenizer, prompt, 16), 0)
            with server.stream(running, max_tokens=5000) as victim:
                victim.read(2)
                write_astray(server)
                victim.read()
            assert victim.error is not None
            assert "does not hold what was written there" in victim.error["message"]
            assert expected_text(tokenizer, running, 5000).startswith(victim.text), "no token came from damaged KV"
            assert bystander.read().completion().text == expected_text(tokenizer, calm, 600)
        server.wait_until_idle()
        found = {name: server.worker(name)["num_damaged_blocks"] for name in ("prefill-0", "decode-0")}
        assert all(found.values()), found


def test_without_checksums_nothing_is_claimed(serving: Serving, tokenizer: Tokenizer) -> None:
    prompt = make_prompt(100, 1)
    with serving(engine="modeled") as server:
        server.complete(prompt)
        write_astray(server)
        answer = server.complete([*prompt, 300])
        assert answer.num_cached_tokens == 96
        assert answer.text != expected_text(tokenizer, [*prompt, 300], 16), "the damage is real"
        assert server.worker("decode-0")["num_damaged_blocks"] == 0
