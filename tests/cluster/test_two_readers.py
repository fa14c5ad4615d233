"""Readers on two machines at once, and the real model on two: answers equal those of one."""

import pytest
from tests.cluster.conftest import MODELED, StartCluster, one_core, wait_until_serving
from tests.cluster.hosts import hosts
from tests.live_server import LiveServer
from tests.modeled_answers import expected_text, make_prompt

from diptych.frontend.text.tokenizer import Tokenizer

READER = "rack1.prefill-0"


def readers(server: LiveServer, number: int) -> set[str | None]:
    return {record["prefill_worker"] for record in server.records()[-number:]}


@pytest.mark.slow
def test_readers_on_both_machines_share_the_work(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    with hosts("rack1") as (host,):
        cluster = start_cluster(*MODELED, "--no-adaptive", "--modeled-time-scale", "0.3", "--kv-checksums")
        cluster.join(host)
        server = cluster.server
        wait_until_serving(server, "rack1")
        prompts = [make_prompt(600, seed) for seed in range(16)]
        answers = server.complete_all(prompts)

        assert [answer.text for answer in answers] == [expected_text(tokenizer, prompt, 16) for prompt in prompts]
        records = server.records()[-len(prompts) :]
        assert {record["decode_worker"] for record in records} == {"decode-0", "rack1.decode-0"}
        assert readers(server, len(prompts)) == {"prefill-0", READER}
        server.wait_until_idle()
        for machine in cluster.machines.values():
            machine.close()


@pytest.mark.slow
def test_real_answers_equal_those_of_one_machine(start_cluster: StartCluster, smol_server: LiveServer) -> None:
    texts = ["The two panels of a diptych are", "def fibonacci(n):\n", "In the morning the fishermen of the village "]
    prompts = [text * repeat for text in texts for repeat in (3, 60)]
    expected = [answer.text for answer in smol_server.complete_all(prompts, max_tokens=40)]
    with hosts("rack1") as (host,):
        f32 = ("--kv-dtype", "f32", "--max-model-len", "2048", "--no-adaptive", "--kv-checksums", "--kv-bytes", "400MB")
        cluster = start_cluster(*f32, "--prefill", "0", "--decode", "1", *one_core(0))
        cluster.join(host, "--kv-bytes", "400MB", "--prefill", "1", "--decode", "0", *one_core(1))
        server = cluster.server
        wait_until_serving(server, "rack1")
        assert [answer.text for answer in server.complete_all(prompts, max_tokens=40)] == expected
        assert readers(server, len(prompts)) == {READER}
        assert server.worker("decode-0")["num_damaged_blocks"] == 0, "every byte arrived as it was sent"
        server.wait_until_idle()
        for machine in cluster.machines.values():
            machine.close()
