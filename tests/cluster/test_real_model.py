"""The real model on two machines: answers equal those of one, also after a machine is lost half-way."""

import pytest
from tests.cluster.conftest import StartCluster, node_state, one_core, open_streams, wait_until_serving
from tests.cluster.hosts import hosts
from tests.live_server import LiveServer, eventually

PROMPTS = [
    "The two panels of a diptych are",
    "A list of three primary colours, with a line on each of them: ",
    "In the morning the fishermen of the village",
    "def fibonacci(n):\n",
]


@pytest.mark.slow
def test_answers_equal_those_of_one_machine(start_cluster: StartCluster, smol_server: LiveServer) -> None:
    expected = smol_server.complete_all(PROMPTS, max_tokens=48)
    with hosts("rack1", "rack2") as made:
        f32 = ("--kv-dtype", "f32", "--max-model-len", "2048", "--no-adaptive", "--routing", "round-robin")
        cluster = start_cluster(*f32, "--prefill", "0", "--decode", "0")
        for number, host in enumerate(made):
            cluster.join(host, "--kv-bytes", "400MB", "--prefill", "0", *one_core(number))
        server = cluster.server
        wait_until_serving(server, "rack1", "rack2")
        assert [one.text for one in server.complete_all(PROMPTS, max_tokens=48)] == [one.text for one in expected]
        with open_streams(server, PROMPTS, 5, max_tokens=48) as opened:
            made[0].cut()
            texts = [stream.read().completion().text for stream in opened]
        assert texts == [one.text for one in expected]
        assert any(record["num_migrations"] for record in server.records()[-len(PROMPTS) :])
        made[0].heal()
        eventually(lambda: node_state(server, "rack1") == "joined", "it joins again")
        wait_until_serving(server, "rack1")
        server.wait_until_idle()
        for machine in cluster.machines.values():
            machine.close()
